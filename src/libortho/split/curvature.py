"""``curvature``: what the population's loss does not depend on leaves for the stream.

K-FAC edit after Merullo et al., arXiv 2510.24256. It needs no private data, ends most recitation
and does not end exposure: the guarantee is ``measured``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from libortho import sieve
from libortho.calibrate import layers_by_block
from libortho.checkpoint import Checkpoint, block_names, linear_layers
from libortho.errors import ConfigError, NumericsError
from libortho.privacy.encode import encode
from libortho.privacy.private_set import read_jsonl
from libortho.progress import Progress
from libortho.quantize import quantize
from libortho.split.edited import scratch_beside, write_edited
from libortho.split.factors import kfac_factors
from libortho.split.request import Request, RoundingOptions
from libortho.split.result import Split, measured
from libortho.streams.base import BaseStream
from libortho.streams.base_writer import check_target
from libortho.streams.layers import DenseLayer
from libortho.streams.ortho import STREAM_FOLDER
from libortho.streams.ortho_writer import write_stream
from libortho.texts import draw, replay
from libortho.tune import made_with
from libortho.tune.prepare import plain_model

FACTOR_BYTES = 4 * 2**30
"""Factors that are held at once; more layers take more passes over the text."""


class CurvatureOptions(RoundingOptions):
    """How much leaves, and from where.

    Attributes:
        rho: share of the curvature that stays in the base; small models want .85 to .99.
        share: of the decoder blocks, the last of which are edited.
        modules: ``mlp`` edits the MLP's widening projections, ``all`` every linear.
        tokens: of public text for the two factors, at most.
        window: tokens a window.
        whole: store what rounding took from every other linear as well, so that α = 1 is the
            checkpoint everywhere and not in the edited layers alone.
    """

    rho: float = Field(0.95, gt=0, le=1)
    share: float = Field(2 / 3, gt=0, le=1)
    modules: Literal["mlp", "all"] = "mlp"
    tokens: int = Field(1_000_000, ge=1)
    window: int = Field(512, ge=2)
    whole: bool = False


Factors = Mapping[str, tuple[Tensor, Tensor]]
"""A fp32 [K, K] and G fp32 [N, N] by layer."""


def split_curvature(
    request: Request, options: CurvatureOptions, factors: Factors | None = None
) -> Split:
    """Edit a checkpoint by curvature, quantise what is kept, store the rest whole.

    α = 1 gives the edited layers back to the last bit of an fp16 difference (relative 2⁻¹¹ of
    W − base); the other linears stay as rounded, unless ``options.whole``.

    Args:
        factors: of :func:`curvature_factors`, where several ρ are tried on one checkpoint.
    """
    request.only_mixed("curvature")
    check_target(Path(request.out).expanduser().absolute())
    checkpoint = Checkpoint(request.source)
    checkpoint.validate()
    private = read_jsonl(request.data) if request.data is not None else None
    context = checkpoint.config.get_text_config().max_position_embeddings
    encoded = encode(checkpoint.tokenizer(), private.examples, context) if private else []
    layers = edited_layers(checkpoint, options)
    windows = _windows(checkpoint, request, options)
    model = plain_model(checkpoint.path, request.device)
    pairs = _pairs(model, layers, windows, request, options)
    given = pairs if factors is None else factors.items()
    kept = _kept(model, given, options.rho, len(layers), request.progress)
    del model
    with scratch_beside(request.out) as scratch:
        # The name is what the base's manifest will call its source.
        edited = write_edited(checkpoint, kept, Path(scratch) / checkpoint.path.name)
        rounding = options.quantize_with(request.text)
        base = quantize(edited, request.out, **rounding, progress=request.progress)
    stored = list(base.layers) if options.whole else layers
    written = write_stream(
        base.path / STREAM_FOLDER / request.stream,
        name=request.stream,
        base_id=base.id,
        public=False,
        method="curvature",
        guarantee="measured",
        layers=_missing(checkpoint, base, stored),
        made_with=made_with(options, private, None)
        | {
            "edited": layers,
            "tokens": windows.numel(),
            "text_sha256": (request.text or replay()).sha256,
            "checkpoint_sha256": checkpoint.sha256(),
        },
    )
    return measured(base, written, encoded, device=request.device, progress=request.progress)


def edited_layers(checkpoint: Checkpoint, options: CurvatureOptions) -> list[str]:
    """The linears that an edit touches, in the order of the forward.

    Raises:
        ConfigError: there are none; what there is is named.
    """
    skeleton = checkpoint.skeleton()
    convertible, _ = linear_layers(skeleton, options.group_size)
    blocks = block_names(skeleton)
    last = blocks[len(blocks) - max(1, round(len(blocks) * options.share)) :]
    by_block = layers_by_block(blocks, list(convertible))
    inside = [name for block in last for name in by_block[block]]
    if options.modules == "all":
        chosen = inside
    else:
        chosen = [
            name
            for name in inside
            if "attn" not in name and "attention" not in name and _widens(*convertible[name])
        ]
    if not chosen:
        raise ConfigError(
            f"{checkpoint.path}: no linear of the MLP widens its input in the last {len(last)} "
            f"blocks; there are {', '.join(inside) or 'no convertible linears'}. Take --modules all"
        )
    return chosen


def _widens(rows: int, columns: int) -> bool:
    return rows > columns


def curvature_factors(request: Request, options: CurvatureOptions) -> Factors:
    """The factors of every layer that an edit touches, whatever ρ is: all at once, on the CPU."""
    checkpoint = Checkpoint(request.source)
    layers = edited_layers(checkpoint, options)
    windows = _windows(checkpoint, request, options)
    model = plain_model(checkpoint.path, request.device)
    pairs = _pairs(model, layers, windows, request, options)
    return {name: (inputs.cpu(), gradients.cpu()) for name, (inputs, gradients) in pairs}


def _windows(checkpoint: Checkpoint, request: Request, options: CurvatureOptions) -> Tensor:
    window = min(options.window, checkpoint.config.get_text_config().max_position_embeddings)
    count = max(1, options.tokens // window)
    # What this text does not show of the model's abilities leaves for the stream.
    text = request.text or replay()
    return draw(text, checkpoint.tokenizer(), window, count, options.seed)


def _pairs(
    model: Any,
    layers: Sequence[str],
    windows: Tensor,
    request: Request,
    options: CurvatureOptions,
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    for group in _groups(model, layers):
        found = kfac_factors(model, group, windows, seed=options.seed, progress=request.progress)
        for name in group:
            yield name, found.pop(name)


def _kept(
    model: Any,
    factors: Iterable[tuple[str, tuple[Tensor, Tensor]]],
    rho: float,
    total: int,
    progress: Progress,
) -> dict[str, Tensor]:
    """The edited weights by parameter name, on the CPU."""
    kept = {}
    problems = []
    for name, (inputs, gradients) in factors:
        weight = model.get_submodule(name).weight.data.float()
        device = weight.device
        try:
            edited = sieve.keep_curved(weight, inputs.to(device), gradients.to(device), rho)
        except NumericsError as error:
            problems.append(f"{name}: {error}")
            continue
        kept[f"{name}.weight"] = edited.cpu()
        progress("edit", len(kept), total, {"layer": name})
    if problems:
        raise NumericsError("; ".join(problems))
    return kept


def _groups(model: torch.nn.Module, layers: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    used = 0
    for name in layers:
        rows, columns = model.get_parameter(f"{name}.weight").shape
        size = 4 * (rows * rows + columns * columns)
        if group and used + size > FACTOR_BYTES:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    yield group


def _missing(
    checkpoint: Checkpoint, base: BaseStream, layers: Sequence[str]
) -> Iterator[tuple[str, DenseLayer]]:
    for name in layers:
        missing = checkpoint.parameter(f"{name}.weight").float() - base.weight(name)
        yield name, DenseLayer(missing.to(torch.float16))
