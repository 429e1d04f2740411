"""``residual``: base = Q(W), ortho = the rounding residuals of highest impact.

The seed of the idea and its honest negative result: rounding does not remove what training put
in, so the base still recites. Guarantee: measured, and expected to leak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from libortho import sieve
from libortho.calibrate import hessians
from libortho.checkpoint import Checkpoint
from libortho.privacy.encode import encode
from libortho.privacy.private_set import read_jsonl
from libortho.quantize import quantize
from libortho.split.request import Request, RoundingOptions
from libortho.split.result import Split, measured
from libortho.streams.base import BaseStream
from libortho.streams.layers import CsrLayer, csr_from_dense
from libortho.streams.ortho import STREAM_FOLDER, OrthoStream
from libortho.streams.ortho_writer import write_stream
from libortho.texts import calibration, draw
from libortho.tune import made_with

Impact = Literal["obs", "diagonal", "spqr"]
_SCORES: dict[Impact, Callable[[Tensor, Tensor], Tensor]] = {
    "obs": sieve.obs_impact,
    "diagonal": sieve.impact,
    "spqr": sieve.spqr_impact,
}


class ResidualOptions(RoundingOptions):
    """Which residuals leave.

    Attributes:
        density: nnz / numel of every converted linear.
        impact: ``obs`` (W − Q)²/[H⁻¹]ⱼⱼ, ``diagonal`` (W − Q)²Hⱼⱼ, or ``spqr``, which
            multiplies by what later inputs leave undetermined.
        windows: of public text for the second moments.
        window: tokens a window.
    """

    density: float = Field(0.02, gt=0, le=1)
    impact: Impact = "obs"
    windows: int = Field(250, ge=1)
    window: int = Field(128, ge=2)


def split_residual(request: Request, options: ResidualOptions) -> Split:
    """Quantise a checkpoint and keep its largest rounding residuals in a stream."""
    request.only_mixed("residual")
    checkpoint = Checkpoint(request.source)
    tokenizer = checkpoint.tokenizer()
    private = read_jsonl(request.data) if request.data is not None else None
    context = checkpoint.config.get_text_config().max_position_embeddings
    encoded = encode(tokenizer, private.examples, context) if private else []
    rounding = options.quantize_with(request.text)
    base = quantize(checkpoint.path, request.out, **rounding, progress=request.progress)
    columns = column_weights(request, options, list(base.layers))
    written = write_residuals(request, base, options, columns)
    return measured(base, written, encoded, device=request.device, progress=request.progress)


def column_weights(
    request: Request, options: ResidualOptions, layers: Sequence[str]
) -> dict[str, Tensor]:
    """What a squared residual counts in each column, fp32 [K] by layer, whatever the base is."""
    checkpoint = Checkpoint(request.source)
    text = request.text or calibration()
    windows = draw(text, checkpoint.tokenizer(), options.window, options.windows, options.seed)
    moments = hessians(checkpoint, windows, layers, progress=request.progress)
    return {name: column_weight(moment, options.impact) for name, moment in moments}


def column_weight(second_moment: Tensor, impact: Impact) -> Tensor:
    """The impact of a residual of 1 in each column, fp32 [K], for inputs of that moment [K, K]."""
    ones = torch.ones(1, len(second_moment))
    return _SCORES[impact](ones, sieve.damped(second_moment))[0]


def write_residuals(
    request: Request, base: BaseStream, options: ResidualOptions, columns: Mapping[str, Tensor]
) -> OrthoStream:
    """Write the largest residuals of a checkpoint beside a base that was made from it.

    Args:
        columns: of :func:`column_weights`.
    """
    checkpoint = Checkpoint(request.source)

    def weight(name: str) -> Tensor:
        return checkpoint.parameter(f"{name}.weight").float()

    private = read_jsonl(request.data) if request.data is not None else None
    return write_stream(
        base.path / STREAM_FOLDER / request.stream,
        name=request.stream,
        base_id=base.id,
        public=False,
        method="residual",
        guarantee="measured",
        layers=top_residuals(weight, base, columns, options.density),
        made_with=made_with(options, private, None),
    )


def top_residuals(
    weight: Callable[[str], Tensor],
    base: BaseStream,
    columns: Mapping[str, Tensor],
    density: float,
) -> Iterator[tuple[str, CsrLayer]]:
    """Per layer the residuals W − Q(W) of highest impact.

    Args:
        weight: the checkpoint's weight by layer name, fp32 [N, K].
        base: its own INT4 base.
        columns: what a squared residual counts, fp32 [K] by layer.
        density: nnz / numel of each layer.
    """
    for name, counts in columns.items():
        missed = weight(name) - base.weight(name)
        mask = sieve.top_k(missed.square() * counts, round(missed.numel() * density))
        yield name, csr_from_dense(missed, mask)
