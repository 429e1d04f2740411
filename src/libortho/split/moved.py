"""A base whose codes were moved, and the stream that takes the moves back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from libortho.checkpoint import Checkpoint
from libortho.streams.base import BaseStream, dequantise
from libortho.streams.base_writer import QuantisedLayer, write_base
from libortho.streams.layers import CsrLayer, csr_from_dense

Moves = Mapping[str, Tensor]
"""Steps that codes move by, int8 [N, K] by layer; layers that are not named stay."""


def write_moved(
    out: str | Path, checkpoint: Checkpoint, before: BaseStream, moves: Moves
) -> BaseStream:
    """Write the base ``before`` with other codes; scales and everything else stay."""
    manifest = before.manifest
    layers = {**before.layers, **manifest.experts}

    def moved() -> Iterator[QuantisedLayer]:
        for name in layers:
            codes, scales, error = (
                before.codes(name),
                before.scales(name),
                manifest.relative_error[name],
            )
            if name in moves:
                codes = codes + moves[name]
                weight = checkpoint.parameter(f"{name}.weight").float()
                missed = dequantise(codes, scales).sub_(weight).norm()
                error = float(missed / weight.norm().clamp(min=torch.finfo(torch.float32).tiny))
            yield QuantisedLayer(name, codes, scales, error)

    return write_base(
        out,
        checkpoint,
        layers,
        moved(),
        quantiser=manifest.quantiser,
        skipped=manifest.skipped,
        experts=manifest.experts,
        calibration=manifest.calibration,
    )


def taken_back(before: BaseStream, name: str, moves: Tensor) -> CsrLayer:
    """What a move took from a layer's weights: (old − new codes) × scale, in fp16.

    Exact where the move is a power of two and the scale a number of fp16.
    """
    return csr_from_dense(-dequantise(moves, before.scales(name)), moves != 0)


def restores(before: BaseStream, after: BaseStream, name: str, layer: CsrLayer) -> bool:
    """Whether base and stream together are the old weights, bit for bit."""
    return torch.equal(after.weight(name) + layer.dense(), before.weight(name))
