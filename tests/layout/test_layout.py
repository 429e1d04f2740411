"""Tiles lose nothing, pad with nothing, and refuse what they cannot hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libortho.errors import CorruptStream, UnsupportedLayer
from libortho.layout import tile_base, tile_csr, tile_values, untile_base


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 100),
    groups=st.integers(1, 4),
    group_size=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_base_round_trip(
    rows: int, groups: int, group_size: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, groups * group_size), dtype=torch.int8)
    scales = torch.randn(rows, groups).to(dtype)
    base = tile_base(codes, scales, group_size)
    assert base.tiles.numel() * 2 == base.tiles.shape[0] * 32 * codes.shape[1]
    back_codes, back_scales = untile_base(base)
    assert torch.equal(back_codes, codes)
    assert torch.equal(back_scales, scales)
    assert back_scales.dtype == dtype


def test_base_tile_bytes() -> None:
    """The documented order: word r, nibble j of tile (t, b): row 32 t + r, input 8 b + j."""
    codes = torch.randint(-8, 8, (40, 32), dtype=torch.int8)
    base = tile_base(codes, torch.ones(40, 1, dtype=torch.float16), 32)
    words = base.tiles.view(torch.int32)
    assert words.shape == (2, 4, 32)
    for row, column in ((0, 0), (31, 7), (32, 8), (39, 31)):
        word = int(words[row // 32, column // 8, row % 32]) & 0xFFFFFFFF
        nibble = word >> (4 * (column % 8)) & 0xF
        assert nibble == int(codes[row, column]) & 0xF
    assert not words[1, :, 8:].any()
    assert not base.scales[1, :, 8:].any()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_stream_round_trip(rows: int, columns: int, density: float, seed: int) -> None:
    torch.manual_seed(seed)
    mask = torch.rand(rows, columns) < density
    values = torch.randn(int(mask.sum()))
    indptr = torch.cat((torch.zeros(1, dtype=torch.long), mask.sum(1).cumsum(0))).int()
    tiles = tile_csr(indptr, mask.nonzero()[:, 1].int(), (rows, columns))
    tiled = tile_values(values, tiles.order)

    dense = torch.zeros(-(-rows // 16) * 16, columns + 1)
    for part in range(tiles.slice_ptr.numel() - 1):
        for slot in range(int(tiles.slice_ptr[part]), int(tiles.slice_ptr[part + 1])):
            where = tiles.columns[slot].long() & 0xFFFF
            dense[torch.arange(16) + 16 * part, where] += tiled[slot]
    expected = torch.zeros(rows, columns)
    expected[mask] = values
    assert torch.equal(dense[:rows, :columns], expected)
    pads = tiles.order < 0
    assert not tiled[pads].any()
    assert (tiles.columns[pads].long() & 0xFFFF == columns).all()
    # Pads end a row: once a lane of a slice is a pad, it stays one.
    same_slice = torch.ones(max(len(tiles.order) - 1, 0), dtype=torch.bool)
    starts = tiles.slice_ptr[1:-1].long()
    same_slice[starts[(starts > 0) & (starts < len(tiles.order))] - 1] = False
    assert not (pads[:-1] & ~pads[1:])[same_slice].any()


def test_columns_beyond_int16() -> None:
    tiles = tile_csr(torch.tensor([0, 2]), torch.tensor([5, 65000]), (1, 65504))
    assert (tiles.columns.long() & 0xFFFF)[:, 0].tolist() == [5, 65000]
    assert (tiles.columns.long() & 0xFFFF)[:, 1:].unique().tolist() == [65504]


def test_tile_values_gradient_is_the_inverse_gather() -> None:
    tiles = tile_csr(torch.tensor([0, 3, 3, 4]), torch.tensor([0, 2, 5, 1]), (3, 6))
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    tiled = tile_values(values, tiles.order)
    weights = torch.arange(tiled.numel(), dtype=torch.float32).view(tiled.shape)
    (tiled * weights).sum().backward()
    expected = torch.stack([weights[tiles.order == entry][0] for entry in range(4)])
    assert torch.equal(values.grad, expected)


@pytest.mark.parametrize(
    ("shape", "scales", "group", "word"),
    [
        ((4, 48), torch.ones(4, 1).half(), 32, "multiple of group_size"),
        ((4, 32), torch.ones(4, 1).half(), 16, "must be one of"),
        ((4, 64), torch.ones(4, 1).half(), 32, r"scales must be \[4, 2"),
        ((4, 32), torch.ones(4, 1), 32, "float16 or bfloat16"),
        ((1, 65536), torch.ones(1, 512).half(), 128, "above 65535"),
        ((0, 32), torch.ones(0, 1).half(), 32, "N must not be 0"),
    ],
)
def test_base_refusals(shape: tuple[int, int], scales: torch.Tensor, group: int, word: str) -> None:
    with pytest.raises(UnsupportedLayer, match=word):
        tile_base(torch.zeros(shape, dtype=torch.int8), scales, group)


@pytest.mark.parametrize("code", [8, -9])
def test_codes_out_of_range(code: int) -> None:
    codes = torch.full((4, 32), code, dtype=torch.int8)
    with pytest.raises(UnsupportedLayer, match=r"-8 \.\. 7"):
        tile_base(codes, torch.ones(4, 1).half(), 32)


@pytest.mark.parametrize(
    ("indptr", "indices", "word"),
    [
        ([0, 1], [0], r"indptr must be \[3\]"),
        ([0, 2, 3], [0, 1], "run from 0 to 2"),
        ([0, 2, 1], [3], "decreases"),
        ([0, 2, 2], [1, 1], "strictly increasing"),
        ([0, 2, 2], [3, 1], "strictly increasing"),
        ([0, 1, 2], [0, 4], r"0 \.\. 3"),
        ([0, 1, 2], [-1, 2], r"0 \.\. 3"),
    ],
)
def test_stream_refusals(indptr: list[int], indices: list[int], word: str) -> None:
    with pytest.raises(CorruptStream, match=word):
        tile_csr(torch.tensor(indptr), torch.tensor(indices), (2, 4))


def test_stream_too_wide() -> None:
    with pytest.raises(UnsupportedLayer, match="65535"):
        tile_csr(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), (1, 65536))
