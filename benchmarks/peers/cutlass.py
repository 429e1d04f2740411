"""CUTLASS's mixed-input GEMM for Hopper (its example 55): fp16 rows, INT4 in groups of 128."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from libortho.layout import BaseTiles, untile_base

from .entry import entry
from .layers import dequantised
from .peer import Peer, Tensors


class Cutlass(Peer):
    name = "CUTLASS"
    variants = ("64x16 pingpong", "128x16 cooperative", "128x32 cooperative", "128x64 cooperative")
    """Outputs x rows of a tile, and the schedule."""

    def __init__(self, library: Path) -> None:
        self._run = entry(library, "peer_cutlass")
        self._pack = entry(library, "peer_cutlass_pack")

    def pack(self, base: BaseTiles) -> Tensors:
        """Bytes in an order that the library chooses, from row-major ones; scales [K / 128, N]."""
        codes, scales = untile_base(base)
        plain = row_major(codes)
        packed = torch.empty_like(plain)
        self._pack(plain, packed, *base.shape)
        return packed, scales.T.contiguous()

    def dense(self, base: BaseTiles, packed: Tensors) -> Tensor:
        return dequantised(base)

    def multiply(self, x: Tensor, packed: Tensors, stream: Tensors | None, variant: str) -> Tensor:
        weight, scales = packed
        (m, k), n = x.shape, scales.shape[1]
        y = x.new_empty(m, n)
        which = self.variants.index(variant)
        self._run(x, weight, scales, y, m, n, k, k // scales.shape[0], which)
        return y


def row_major(codes: Tensor) -> Tensor:
    """Codes [N, K] int8 as bytes [N, K / 2]: two's complement nibbles, the first the lower."""
    nibbles = codes.view(torch.uint8) & 0xF
    return (nibbles[:, ::2] | (nibbles[:, 1::2] << 4)).contiguous()
