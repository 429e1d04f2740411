"""The part of a stream that one rank computes: row and column slices of its layers.

vLLM joins projections (q, k and v; gate and up) into one linear and splits it between ranks. The
joined layer has the rows of its projections, one after another; a rank holds some ranges of those
rows, or, where the inputs are split, one range of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from libortho.streams.layers import CsrLayer, DenseLayer, Layer, LowRankLayer

Range = tuple[int, int]


@dataclass(frozen=True)
class Shard:
    """What one rank holds of a joined linear.

    Attributes:
        rows: ranges of output features of the joined layer, in the rank's order.
        columns: the range of input features.
    """

    rows: tuple[Range, ...]
    columns: Range

    @property
    def shape(self) -> tuple[int, int]:
        return sum(end - start for start, end in self.rows), self.columns[1] - self.columns[0]


@dataclass(frozen=True)
class Placed:
    """A factored or dense part, and the row of the rank's output that it starts at."""

    start: int
    layer: LowRankLayer | DenseLayer


def take_csr(parts: Sequence[tuple[int, CsrLayer]], shard: Shard) -> CsrLayer:
    """The sparse parts of a joined linear as one matrix of the rank's shape.

    Args:
        parts: (first row in the joined layer, layer), disjoint.
    """
    first, last = shard.columns
    lengths, indices, values = [], [], []
    for start, end in shard.rows:
        counts = torch.zeros(end - start, dtype=torch.int64)
        for offset, layer in sorted(parts, key=lambda part: part[0]):
            low, high = max(start, offset), min(end, offset + layer.shape[0])
            if low >= high:
                continue
            pointers = layer.indptr.long()[low - offset : high - offset + 1]
            inside = slice(int(pointers[0]), int(pointers[-1]))
            column = layer.indices[inside]
            kept = (column >= first) & (column < last)
            row = torch.repeat_interleave(torch.arange(high - low), pointers.diff())
            counts[low - start : high - start] += torch.bincount(row[kept], minlength=high - low)
            indices.append(column[kept] - first)
            values.append(layer.values[inside][kept])
        lengths.append(counts)
    indptr = torch.zeros(shard.shape[0] + 1, dtype=torch.int32)
    indptr[1:] = torch.cat(lengths).cumsum(0)
    return CsrLayer(
        indptr,
        torch.cat(indices) if indices else torch.empty(0, dtype=torch.int32),
        torch.cat(values) if values else torch.empty(0, dtype=torch.float16),
        shard.shape,
    )


def take_placed(parts: Sequence[tuple[int, Layer]], shard: Shard) -> list[Placed]:
    """The factored and dense parts of a joined linear, cut to the rank's rows and columns."""
    first, last = shard.columns
    taken = []
    local = 0
    for start, end in shard.rows:
        for offset, layer in parts:
            low, high = max(start, offset), min(end, offset + layer.shape[0])
            if low >= high or isinstance(layer, CsrLayer):
                continue
            rows = slice(low - offset, high - offset)
            cut: LowRankLayer | DenseLayer
            if isinstance(layer, LowRankLayer):
                a = layer.a[:, first:last].contiguous()
                cut = LowRankLayer(a, layer.b[rows].contiguous(), layer.scaling)
            else:
                cut = DenseLayer(layer.delta[rows, first:last].contiguous())
            taken.append(Placed(local + low - start, cut))
        local += end - start
    return taken
