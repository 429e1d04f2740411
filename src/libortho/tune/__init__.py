"""``libortho tune``: what private data teaches goes into a stream, never into the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from libortho import gate
from libortho.checkpoint import Checkpoint
from libortho.model import attach_layers, stream_parts
from libortho.privacy.encode import encode
from libortho.privacy.private_set import PrivateSet, read_jsonl
from libortho.privacy.score import score
from libortho.progress import Progress, silent
from libortho.streams.base import BaseStream
from libortho.streams.layers import Layer
from libortho.streams.ortho import OrthoStream, check_name
from libortho.streams.ortho_writer import vacant, write_stream
from libortho.texts import Text, draw
from libortho.texts import replay as shipped_replay
from libortho.tune.options import ReplayOptions, TuneOptions, tune_options
from libortho.tune.prepare import Ground, base_at, ground, teacher
from libortho.tune.replay import Replay
from libortho.tune.support import contrast_supports
from libortho.tune.train import Trained, train

__all__ = [
    "TuneOptions",
    "Tuned",
    "fit",
    "made_with",
    "replay_windows",
    "stored_layers",
    "tune",
    "tune_options",
]


@dataclass
class Tuned:
    """A stream that was trained.

    Attributes:
        base: the base it belongs to; none of its bytes changed.
        stream: the stream on disk.
        recall: share of the private completions that greedy decoding recites at α = 1.
        teacher: ``public``, ``base`` or ``tuned``: whose logits the replay kept to.
        curve: per step: loss, recall, kl, lr.
    """

    base: BaseStream
    stream: OrthoStream
    recall: float
    teacher: str
    steps: int
    curve: list[dict[str, float]] = field(default_factory=list)


def tune(
    source: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    public: str | Path | None = None,
    stream: str = "private",
    text: Text | None = None,
    options: TuneOptions | None = None,
    replay: Replay | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Tuned:
    """Train a sparse stream on private data over a frozen INT4 base.

    Args:
        source: a base directory, or a public checkpoint that is quantised first.
        data: JSONL of ``prompt`` and ``completion``, or ``text``.
        out: where base and stream will stand; may be the base itself.
        public: the public checkpoint, teacher of the replay.
        stream: name of the stream, one per tenant.
        text: public text for replay and contrast; default the shipped samples.
        replay: a pool with its teacher, when one is at hand already; default made here.

    Raises:
        ConfigError: a stream of that name exists, or ``out`` is taken.
        FormatError: bad lines in ``data`` (all of them listed).
        PairMismatch: ``public`` is not what the base was made from.
    """
    options = options or tune_options()
    check_name(stream)
    private = read_jsonl(data)
    given = Checkpoint(source)
    encoded = encode(given.tokenizer(), private.examples, given.context)
    base = base_at(source, out)
    place = vacant(base.path, stream)
    laid = ground(base, device)
    taught_by = "public"
    if replay is None:
        model, taught_by = teacher(base, public, device)
        replay = Replay(replay_windows(laid.tokenizer, options, text), model)
    with gate.alpha(laid.alpha):
        supports = contrast_supports(laid.model, encoded, replay.windows, options, progress)
    info = gate.StreamInfo(stream, "", False, tuple(laid.requires))
    attach_layers(laid.model, info, supports)
    trained, recall = fit(laid, stream, encoded, replay, options, progress)
    written = write_stream(
        place,
        name=stream,
        base_id=base.id,
        public=False,
        method="tune",
        guarantee="exact",
        requires=laid.requires,
        layers=stored_layers(laid.model, stream).items(),
        made_with=made_with(options, private, taught_by),
    )
    return Tuned(base, written, recall, taught_by, trained.steps, trained.curve)


def fit(
    laid: Ground,
    stream: str,
    encoded: Sequence[Any],
    replay: Replay,
    options: TuneOptions,
    progress: Progress = silent,
) -> tuple[Trained, float]:
    """Train the attached ``stream`` in place, round it as stored, and measure its recall."""
    parts = stream_parts(laid.model, stream)
    parameters = [parameter for part in parts.values() for parameter in part.trainable()]
    alpha = {**laid.alpha, stream: 1.0}
    trained = train(
        laid.model, parameters, encoded, replay, options, alpha=alpha, progress=progress
    )
    for part in parts.values():
        part.freeze()
    with gate.alpha(alpha):
        scores = score(laid.model, encoded, stage="recall", progress=progress)
    return trained, sum(one.exact for one in scores) / len(scores)


def replay_windows(tokenizer: Any, options: ReplayOptions, text: Text | None = None) -> Tensor:
    """Public windows for replay, int64 [pool, window], drawn from the text by the seed."""
    length, pool = options.replay_window, options.replay_pool
    return draw(text or shipped_replay(), tokenizer, length, pool, options.seed)


def stored_layers(model: Any, stream: str) -> dict[str, Layer]:
    """The layers of an attached stream as they are written to disk."""
    return {name: part.layer() for name, part in stream_parts(model, stream).items()}


def made_with(
    options: BaseModel, private: PrivateSet | None, taught_by: str | None
) -> dict[str, Any]:
    """What stream.json says of how a stream was made."""
    return {
        "options": options.model_dump(mode="json"),
        "examples": len(private.examples) if private else 0,
        "data_sha256": private.sha256 if private else None,
        "teacher": taught_by,
        "libortho": version("libortho"),
        "torch": torch.__version__,
    }
