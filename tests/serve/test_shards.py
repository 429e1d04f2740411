"""Slices of a stream, against slices of the same matrix written out."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libortho.serve.shards import Shard, take_csr, take_placed
from libortho.streams.layers import CsrLayer, DenseLayer, LowRankLayer, csr_from_dense


def matrix(rows: int, columns: int, density: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator).to(torch.float16).float()
    return values * (torch.rand(rows, columns, generator=generator) < density)


def csr(dense: torch.Tensor) -> CsrLayer:
    return csr_from_dense(dense, dense != 0)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, Shard, list[bool], float, int]:
    heights = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    columns = draw(st.integers(1, 16))
    rows, offset = [], 0
    for height in heights:
        start = draw(st.integers(0, height - 1))
        end = draw(st.integers(start + 1, height))
        rows.append((offset + start, offset + end))
        offset += height
    first = draw(st.integers(0, columns - 1))
    shard = Shard(tuple(rows), (first, draw(st.integers(first + 1, columns))))
    present = [draw(st.booleans()) for _ in heights]
    return heights, columns, shard, present, draw(st.floats(0, 1)), draw(st.integers(0, 99))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_sparse_parts_of_a_joined_linear(case) -> None:
    heights, columns, shard, present, density, seed = case
    whole = torch.zeros(sum(heights), columns)
    parts, offset = [], 0
    for index, (height, there) in enumerate(zip(heights, present, strict=True)):
        if there:
            dense = matrix(height, columns, density, seed + index)
            whole[offset : offset + height] = dense
            parts.append((offset, csr(dense)))
        offset += height
    taken = take_csr(parts[::-1], shard)
    rows = torch.cat([whole[start:end] for start, end in shard.rows])
    assert taken.problems() == []
    assert taken.shape == shard.shape
    assert torch.equal(taken.dense(), rows[:, slice(*shard.columns)])


@settings(max_examples=80, deadline=None)
@given(cases())
def test_factored_and_dense_parts_of_a_joined_linear(case) -> None:
    heights, columns, shard, present, _, seed = case
    whole = torch.zeros(sum(heights), columns)
    parts, offset = [], 0
    for index, (height, there) in enumerate(zip(heights, present, strict=True)):
        layer: LowRankLayer | DenseLayer
        if there:
            layer = LowRankLayer(
                matrix(2, columns, 1, seed + index), matrix(height, 2, 1, seed + 50 + index), 0.5
            )
        else:
            layer = DenseLayer(matrix(height, columns, 1, seed + index).to(torch.float16))
        whole[offset : offset + height] = layer.dense()
        parts.append((offset, layer))
        offset += height
    summed = torch.zeros(shard.shape)
    for placed in take_placed(parts, shard):
        assert placed.layer.problems() == []
        height = placed.layer.shape[0]
        summed[placed.start : placed.start + height] += placed.layer.dense()
    rows = torch.cat([whole[start:end] for start, end in shard.rows])
    assert torch.equal(summed, rows[:, slice(*shard.columns)])


def test_ranks_make_up_the_whole() -> None:
    """Four ranks that split q by heads and share two heads of k and v in pairs."""
    query, key, value = (matrix(height, 6, 0.5, height) for height in (16, 4, 4))
    parts = [(0, csr(query)), (16, csr(key)), (20, csr(value))]
    for rank in range(4):
        pair = rank // 2
        rows = ((4 * rank, 4 * rank + 4), (16 + 2 * pair, 18 + 2 * pair))
        shard = Shard((*rows, (20 + 2 * pair, 22 + 2 * pair)), (0, 6))
        expected = (query[4 * rank :][:4], key[2 * pair :][:2], value[2 * pair :][:2])
        assert torch.equal(take_csr(parts, shard).dense(), torch.cat(expected))
