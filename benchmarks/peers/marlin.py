"""Marlin (Frantar et al. 2024, arXiv:2408.11743): fp16 rows, symmetric INT4 in groups of 128."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from libortho.layout import BaseTiles, untile_base

from .entry import entry
from .layers import dequantised, offset_codes
from .peer import Peer, Tensors

TILE_INPUTS = 16
TILE_OUTPUTS = 64


class Marlin(Peer):
    name = "Marlin"

    def __init__(self, library: Path) -> None:
        self._run = entry(library, "peer_marlin")
        self._locks: dict[int, Tensor] = {}

    def pack(self, base: BaseTiles) -> Tensors:
        """Words in the order of tensor-core operands, scales, and the zeroed locks of an N.

        A lane of mma.m16n8k16 holds inputs 2t, 2t + 1, 2t + 8, 2t + 9 of output c of its 8, where
        lane = 4c + t. A word is two such operands, 8 outputs apart; a lane's four words are 16
        outputs apart and lie together. Nibble 4h + 2b + g is input 2t + h + 8g of output c + 8b.
        """
        outputs, inputs = base.shape
        tiles = (outputs // TILE_OUTPUTS, inputs // TILE_INPUTS)
        codes = offset_codes(base).view(tiles[0], 4, 2, 8, tiles[1], 2, 4, 2)
        # [outputs, word, b, c, inputs, g, t, h] -> [inputs, outputs, c, t, word, h, b, g]
        nibbles = codes.permute(4, 0, 3, 6, 1, 7, 2, 5).reshape(tiles[1], outputs * 2, 8)
        scales = untile_base(base)[1].T.reshape(-1, tiles[0], 8, 8).transpose(2, 3)
        if outputs not in self._locks:
            locks = torch.zeros(outputs // 8, device=nibbles.device, dtype=torch.int32)
            self._locks[outputs] = locks
        return joined(nibbles), scales.reshape(-1, outputs).contiguous(), self._locks[outputs]

    def dense(self, base: BaseTiles, packed: Tensors) -> Tensor:
        return dequantised(base)

    def multiply(self, x: Tensor, packed: Tensors, stream: Tensors | None, variant: str) -> Tensor:
        words, scales, locks = packed
        (m, k), n = x.shape, scales.shape[1]
        y = x.new_empty(m, n)
        self._run(x, words, scales, y, m, n, k, k // scales.shape[0], locks)
        return y


def joined(nibbles: Tensor) -> Tensor:
    """int32 words of eight nibbles [.., 8] of 0 .. 15, the first in the lowest bits."""
    words = torch.zeros(nibbles.shape[:-1], device=nibbles.device, dtype=torch.int32)
    for place in range(8):
        words |= nibbles[..., place].int() << (4 * place)
    return words
