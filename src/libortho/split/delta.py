"""``delta``: the stream is what turns the public base into the tuned model. Guarantee: exact."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from libortho import gate
from libortho.calibrate import hessians
from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError
from libortho.model import attach_layers
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.private_set import read_jsonl
from libortho.progress import Progress
from libortho.split.change import AdapterChange, Change, check_adapter, is_adapter, read_change
from libortho.split.compress import Rule, choose, compress, targets
from libortho.split.request import Request
from libortho.split.result import Split
from libortho.streams.layers import Layer
from libortho.streams.ortho_writer import vacant, write_stream
from libortho.tune import fit, made_with, replay_windows, stored_layers
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

_MOMENT_TOKENS = 16384


class DeltaOptions(TuneOptions):
    """How a stream is fitted to what the base lacks of a tuned model, and then trained.

    Attributes:
        sparse: turn an adapter into a sparse stream instead of keeping its factors.
        support: ``contrast`` takes the entries that private data pulls at and public text does
            not (needs the data); ``impact`` those of highest T²Hⱼⱼ; ``pursuit`` takes them share
            by share, each by what it adds to the others (matching pursuit); ``admm`` by ALPS.
            None: contrast where there is data, impact where there is none.
    """

    steps: int = Field(250, ge=1)
    lr: float = Field(4e-3, gt=0)
    sparse: bool = False
    support: Literal["contrast", "impact", "pursuit", "admm"] | None = None


OPTIONS = DeltaOptions()


def split_delta(request: Request, options: DeltaOptions) -> Split:
    """Split a tuned checkpoint or adapter from its public base; see :func:`libortho.split`."""
    source, data, public = request.source, request.data, request.public
    stream, text, device, progress = (
        request.stream,
        request.text,
        request.device,
        request.progress,
    )
    if request.tuned is None:
        raise ConfigError("--method delta needs --tuned CHECKPOINT or --tuned ADAPTER")
    if options.support == "contrast" and data is None:
        raise ConfigError(
            "--support contrast looks at the private data's gradients: give it with --data, or "
            "take --support impact, pursuit or admm"
        )
    if options.support is not None and not options.sparse and is_adapter(request.tuned):
        raise ConfigError(
            f"--support {options.support} chooses entries of a sparse stream, and an adapter is "
            "kept as factors; add --sparse or leave --support out"
        )
    private = read_jsonl(data) if data is not None else None
    check_adapter(source, request.tuned)
    given = Checkpoint(source)
    encoded = encode(given.tokenizer(), private.examples, given.context) if private else []
    base = base_at(source, request.out)
    place = vacant(base.path, stream)
    change = read_change(base, request.tuned, public if is_base(source) else source)
    laid = ground(base, device)
    windows = replay_windows(laid.tokenizer, options, text)
    factors = change.factors if isinstance(change, AdapterChange) and not options.sparse else None
    layers: dict[str, Layer]
    if factors is not None:
        layers = dict(factors)
    else:
        layers = dict(_sparse(laid, change, encoded, windows, options, progress))
    outside = change.outside()
    recall, taught_by, curve = None, None, []
    if private is None:
        logger.warning(
            "no private data was given (--data): "
            + (
                "the adapter's factors are kept as they are, and how much alpha=1 recalls over the "
                "INT4 base is not measured"
                if factors is not None
                else "the values are fitted, not trained, and alpha=1 will not recall what was "
                "learned"
            )
        )
    else:
        info = gate.StreamInfo(stream, "", False, tuple(laid.requires))
        attach_layers(laid.model, info, {**layers, **outside})
        replay = Replay(windows, change.model(device))
        trained, recall = fit(laid, stream, encoded, replay, options, progress)
        taught_by, curve = "tuned", trained.curve
        layers = stored_layers(laid.model, stream)
    written = write_stream(
        place,
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
    options: DeltaOptions,
    progress: Progress,
) -> list[tuple[str, Layer]]:
    supports = None
    if encoded and options.support in (None, "contrast"):
        with gate.alpha(laid.alpha):
            supports = contrast_supports(laid.model, encoded, public, options, progress)
    windows = public[: max(1, _MOMENT_TOKENS // public.shape[1])]
    if encoded:
        ids = [one.input_ids for one in encoded]
        windows = torch.cat([windows, repeated(ids, len(windows), windows.shape[1])])
    moments = hessians(change.inputs_from(), windows, list(laid.base.layers), progress=progress)
    target = targets(laid.base, public_streams(laid.base), change.weight)
    if supports is not None:
        return list(compress(target, moments, supports))
    rule: Rule = "impact"
    if options.support is not None and options.support != "contrast":
        rule = options.support
    return list(choose(target, moments, options.density, rule))
