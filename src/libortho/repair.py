"""`repair`: the public stream that gives back what rounding to INT4 lost.

Matching pursuit on T = W₀ − base in the metric of the layer's inputs, values by least squares,
then a few KL steps on the values towards the public model. All of it is done on public text, and
what the text of the KL steps does not show, such as sums, hardly comes back. Support and first
values are found on calibration text without sums: a quarter of sums there would cost a base of
GPTQ most of what `repair` gives back in perplexity. Adding the largest rounding residuals instead
would undo GPTQ's compensation and make perplexity worse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from libortho import gate, sieve
from libortho.calibrate import hessians
from libortho.checkpoint import Checkpoint
from libortho.errors import PairMismatch
from libortho.model import attach_layers, stream_parts
from libortho.progress import Progress, silent
from libortho.streams.base import BaseStream
from libortho.streams.layers import CsrLayer, csr_from_dense
from libortho.streams.ortho import OrthoStream
from libortho.streams.ortho_writer import vacant, write_stream
from libortho.texts import Text, calibration
from libortho.texts import replay as shipped_replay
from libortho.tune import made_with, replay_windows, stored_layers, tune_options
from libortho.tune.prepare import ground, plain_model
from libortho.tune.replay import Replay
from libortho.tune.train import train


class RepairOptions(BaseModel):
    """How `repair` is made.

    Attributes:
        density: nnz / numel of every converted layer.
        steps: KL steps on the values; 0 leaves the least-squares values.
        lr: of Adam on the values.
        windows: windows of public text for the second moments.
        batch: windows of replay a step.
        seed: of every draw.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    density: float = Field(0.015, gt=0, le=1)
    steps: int = Field(60, ge=0)
    lr: float = Field(1e-3, gt=0)
    windows: int = Field(32, ge=1)
    batch: int = Field(4, ge=1)
    seed: int = 0


def repair(
    base: BaseStream,
    public: str | Path,
    *,
    text: Text | None = None,
    options: RepairOptions | None = None,
    replay: Replay | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> OrthoStream:
    """Make the `repair` stream of a base from public inputs alone and write it beside the base.

    Args:
        base: read, and never changed; no base depends on its `repair`.
        public: the checkpoint that it was made from.
        text: public text for everything; default the shipped calibration samples for the second
            moments, and for the KL the shipped replay text, a quarter of which is arithmetic.
        replay: a larger pool of the KL's text, or one at hand already; default made here. Its
            windows have to be public text and its teacher the public model, which is not checked:
            the stream is marked public. ``made_with`` tells the sha256 of such windows (int64).

    Raises:
        PairMismatch: ``public`` is not what the base was made from.
        ConfigError: the base has a `repair` stream already.
    """
    options = options or RepairOptions()
    checkpoint = Checkpoint(public)
    if checkpoint.sha256() != base.manifest.public.sha256:
        raise PairMismatch(f"{public}: not the checkpoint that {base.path} was made from")
    place = vacant(base.path, gate.REPAIR)
    replay_options = tune_options(
        steps=max(1, options.steps),
        lr=options.lr,
        replay_weight=1.0,
        replay_batch=options.batch,
        seed=options.seed,
    )
    laid = ground(base, device)
    measured, shown = text or calibration(), text or shipped_replay()
    calibrated = replay_windows(laid.tokenizer, replay_options, measured)
    layers = dict(_pursued(base, checkpoint, calibrated, options, progress))
    info = gate.StreamInfo(gate.REPAIR, "", True)
    attach_layers(laid.model, info, layers)
    if replay is not None:
        replay_options = replay_options.model_copy(update={"replay_pool": len(replay.windows)})
    read = None
    if options.steps:
        if replay is None:
            windows = replay_windows(laid.tokenizer, replay_options, shown)
            replay, read = Replay(windows, plain_model(checkpoint.path, device)), shown.sha256
        else:
            read = _sha256(replay.windows)
        parts = stream_parts(laid.model, gate.REPAIR).values()
        train(
            laid.model,
            [parameter for part in parts for parameter in part.trainable()],
            [],
            replay,
            replay_options,
            alpha={gate.REPAIR: 1.0},
            stage="repair",
            progress=progress,
        )
        for part in parts:
            part.freeze()
    return write_stream(
        place,
        name=gate.REPAIR,
        base_id=base.id,
        public=True,
        method="repair",
        guarantee="exact",
        layers=stored_layers(laid.model, gate.REPAIR).items(),
        made_with=made_with(replay_options, None, "public")
        | {
            "repair": options.model_dump(),
            "texts": {"moments": measured.sha256, "kl": read},
        },
    )


def _sha256(windows: torch.Tensor) -> str:
    return hashlib.sha256(windows.cpu().contiguous().numpy().tobytes()).hexdigest()


def _pursued(
    base: BaseStream,
    checkpoint: Checkpoint,
    windows: torch.Tensor,
    options: RepairOptions,
    progress: Progress,
) -> Iterator[tuple[str, CsrLayer]]:
    tokens = options.windows * (checkpoint.context or windows.shape[1])
    chosen = windows[: max(1, tokens // windows.shape[1])]
    moments = hessians(checkpoint, chosen, list(base.layers), progress=progress)
    for done, (name, second_moment) in enumerate(moments):
        missing = checkpoint.parameter(f"{name}.weight").float() - base.weight(name)
        count = round(missing.numel() * options.density)
        mask, values = sieve.pursue(missing, sieve.damped(second_moment), count)
        progress("pursuit", done + 1, len(base.layers), {"layer": name})
        yield name, csr_from_dense(values, mask)
