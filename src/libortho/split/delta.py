"""``delta``: the stream is what turns the public base into the tuned model. Guarantee: exact."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from libortho import gate
from libortho.calibrate import hessians
from libortho.model import attach_layers
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.private_set import read_jsonl
from libortho.progress import Progress, silent
from libortho.split.change import AdapterChange, Change, read_change
from libortho.split.compress import compress, targets
from libortho.split.result import Split
from libortho.streams.layers import Layer
from libortho.streams.ortho import STREAM_FOLDER, write_stream
from libortho.texts import Text
from libortho.tune import fit, made_with, replay_windows, stored_layers, tune_options
from libortho.tune.options import TuneOptions
from libortho.tune.prepare import (
    Ground,
    base_at,
    ground,
    is_base,
    public_streams,
    repeated,
)
from libortho.tune.replay import Replay
from libortho.tune.support import contrast_supports

logger = logging.getLogger(__name__)

OPTIONS = tune_options(steps=250, lr=4e-3)
_MOMENT_TOKENS = 16384


def split_delta(
    source: str | Path,
    out: str | Path,
    *,
    tuned: str | Path,
    data: str | Path | None,
    public: str | Path | None,
    stream: str,
    sparse: bool,
    text: Text | None,
    options: TuneOptions,
    device: str | torch.device,
    progress: Progress = silent,
) -> Split:
    """Split a tuned checkpoint or adapter from its public base; see :func:`libortho.split`."""
    private = read_jsonl(data) if data is not None else None
    base = base_at(source, out)
    change = read_change(base, tuned, public if is_base(source) else source)
    laid = ground(base, device)
    context = laid.model.config.max_position_embeddings
    encoded = encode(laid.tokenizer, private.examples, context) if private else []
    windows = replay_windows(laid.tokenizer, options, text)
    layers: dict[str, Layer]
    if isinstance(change, AdapterChange) and not sparse:
        layers = dict(change.factors)
    else:
        layers = dict(_sparse(laid, change, encoded, windows, options, progress))
    outside = change.outside()
    recall, taught_by, curve = None, None, []
    if private is None:
        logger.warning(
            "no private data was given (--data): the values are fitted, not trained, "
            "and alpha=1 will not recall what was learned"
        )
    else:
        info = gate.StreamInfo(stream, "", False, tuple(laid.requires))
        attach_layers(laid.model, info, {**layers, **outside})
        replay = Replay(windows, change.model(device))
        trained, recall = fit(laid, stream, encoded, replay, options, progress)
        taught_by, curve = "tuned", trained.curve
        layers = stored_layers(laid.model, stream)
    written = write_stream(
        base.path / STREAM_FOLDER / stream,
        name=stream,
        base_id=base.id,
        public=False,
        method="delta",
        guarantee="exact",
        requires=laid.requires,
        layers=[*layers.items(), *outside.items()],
        made_with=made_with(options, private, taught_by),
    )
    return Split(base, written, recall, taught_by, curve)


def _sparse(
    laid: Ground,
    change: Change,
    encoded: Sequence[Encoded],
    public: Tensor,
    options: TuneOptions,
    progress: Progress,
) -> list[tuple[str, Layer]]:
    supports = None
    if encoded:
        with gate.alpha(laid.alpha):
            supports = contrast_supports(laid.model, encoded, public, options, progress)
    windows = public[: max(1, _MOMENT_TOKENS // public.shape[1])]
    if encoded:
        ids = [one.input_ids for one in encoded]
        windows = torch.cat([windows, repeated(ids, len(windows), windows.shape[1])])
    moments = hessians(change.inputs_from(), windows, list(laid.base.layers), progress=progress)
    target = targets(laid.base, public_streams(laid.base), change.weight)
    return list(compress(target, moments, options.density, supports))
