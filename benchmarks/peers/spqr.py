"""SpQR (Dettmers et al. 2023, arXiv:2306.03078): one fp16 row, 3 bits in 16 x 16 tiles, CSR."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from libortho.layout import BaseTiles

from .entry import entry
from .peer import Peer, Tensors

TILE = 16
LEVELS = 8
SECOND_ORDER = 54
"""The first bit of a word that holds a byte of its tile's second-order numbers."""


class SpQR(Peer):
    name = "SpQR"
    most_rows = 1
    takes_streams = True

    def __init__(self, library: Path) -> None:
        self._run = entry(library, "peer_spqr")

    def pack(self, base: BaseTiles) -> Tensors:
        """Random words of the base's shape (4 bits do not fit), and a stream of no entries."""
        device = base.tiles.device
        empty = torch.zeros(base.shape[0] + 1, device=device, dtype=torch.int32)
        return random_words(*base.shape, device), empty, empty[:0]

    def pack_stream(self, csr: Tensor) -> Tensors:
        """Row pointers int32 [N + 1]; an int32 an entry, the column below, its fp16 above."""
        values = csr.values().half().view(torch.int16).int() << 16
        return csr.crow_indices().int(), values | csr.col_indices().int()

    def dense(self, base: BaseTiles, packed: Tensors) -> Tensor:
        return dense_of(packed[0])

    def multiply(self, x: Tensor, packed: Tensors, stream: Tensors | None, variant: str) -> Tensor:
        words, *empty = packed
        n, k = words.shape[0] * TILE, words.shape[1] * TILE
        pointers, entries = stream or empty
        y = x.new_empty(1, n)
        self._run(x, words, y, n, k, pointers, entries, entries.numel())
        return y


def random_words(outputs: int, inputs: int, device: torch.device | str) -> Tensor:
    """Words [N / 16, K / 16, 16] int64, one for each output of a tile.

    From the lowest bit: 3 bits of the scale's code, 3 of the zero's, 16 x 3 of the weights', and
    byte r // 2 of the tile's four fp16 numbers in output r: the scale of the scales, the scale of
    the zeros, the zero of the scales, the zero of the zeros.
    """
    tiles = (outputs // TILE, inputs // TILE)
    lowest = torch.tensor([0.0005, 0.4, -2.0, -0.5], device=device)
    widest = torch.tensor([0.0005, 0.2, 1.0, 1.0], device=device)
    numbers = (torch.rand(*tiles, 4, device=device) * widest + lowest).half()
    words = numbers.view(torch.uint8).repeat_interleave(2, dim=-1).long() << SECOND_ORDER
    for place in range(TILE + 2):
        codes = torch.randint(0, LEVELS, words.shape, device=device)
        words |= codes << (3 * place)
    return words


def dense_of(words: Tensor) -> Tensor:
    """What words stand for, float32 [N, K], every step rounded to fp16 as the kernel does it."""
    rows, columns, _ = words.shape
    numbers = (words[..., ::2] >> SECOND_ORDER).to(torch.uint8).contiguous().view(torch.float16)
    codes = torch.stack([(words >> (3 * place)) & 7 for place in range(TILE + 2)], -1).half()
    second = numbers[..., None, :]
    scale = second[..., 0] * (codes[..., 0] - second[..., 2])
    zero = second[..., 1] * (codes[..., 1] - second[..., 3])
    weights = scale[..., None] * (codes[..., 2:] - zero[..., None])
    return weights.permute(0, 2, 1, 3).reshape(rows * TILE, columns * TILE).float()
