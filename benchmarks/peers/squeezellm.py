"""SqueezeLLM (Kim et al. 2023, arXiv:2306.07629): fp32 rows, 16 values for each output, CSR."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from libortho.layout import BaseTiles

from .entry import entry
from .layers import offset_codes
from .marlin import joined
from .peer import Peer, Tensors


class SqueezeLLM(Peer):
    name = "SqueezeLLM"
    dtype = torch.float32
    most_rows = 8
    takes_streams = True

    def __init__(self, library: Path) -> None:
        self._run = entry(library, "peer_squeezellm")

    def pack(self, base: BaseTiles) -> Tensors:
        """Words [K / 8, N] of eight inputs' codes, and random tables [N, 16].

        The format has one table for an output, so that it cannot hold the base's groups.
        """
        outputs, inputs = base.shape
        words = joined(offset_codes(base).view(outputs, inputs // 8, 8).transpose(0, 1))
        return words, torch.randn(outputs, 16, device=words.device) * 0.01

    def pack_stream(self, csr: Tensor) -> Tensors:
        """Row pointers and columns int32, values fp32."""
        return csr.crow_indices().int(), csr.col_indices().int(), csr.values().float()

    def dense(self, base: BaseTiles, packed: Tensors) -> Tensor:
        return packed[1].gather(1, offset_codes(base).long())

    def multiply(self, x: Tensor, packed: Tensors, stream: Tensors | None, variant: str) -> Tensor:
        words, tables = packed
        (m, k), n = x.shape, words.shape[1]
        y = x.new_empty(m, n)
        self._run(x, words, tables, y, m, n, k, *(stream or (None, None, None)))
        return y
