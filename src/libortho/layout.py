"""How weights lie in memory for the kernels: INT4 tiles and SELL-16 slices, pure index arithmetic.

``csrc/core/layout.h`` is the other half of this module: it describes the same bytes.

Base: tiles of 32 output rows x 8 inputs. A tile is 32 little-endian 32-bit words, one for each row;
nibble j of a word is the two's complement code of input j. Rows are padded to 32 with code 0 and
scale 0.

Stream: SELL-16 (Kreutzer et al. 2014, "A unified sparse matrix data format"). A slice is 16 output
rows and as many slots as its longest row has entries; slot s holds entry s of each row. Pads come
last in a row, have value 0 and point at column K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from libortho.errors import CorruptStream, UnsupportedLayer
from libortho.pages import on_large_pages

TILE_ROWS = 32
TILE_INPUTS = 8
SLICE_ROWS = 16
GROUP_SIZES = (32, 64, 128)
MAX_COLUMNS = 65535
"""A column index has 16 bits, and index K marks a pad."""


@dataclass(frozen=True)
class BaseTiles:
    """An INT4 matrix in tile order.

    Attributes:
        tiles: [ceil(N/32), K/8, 128] uint8.
        scales: [ceil(N/32), K/group_size, 32] float16 or bfloat16.
        shape: (N, K), output and input features.
        group_size: inputs that share a scale: 32, 64 or 128.
    """

    tiles: Tensor
    scales: Tensor
    shape: tuple[int, int]
    group_size: int


@dataclass(frozen=True)
class OrthoTiles:
    """The positions of a sparse matrix in SELL-16 order; its values are kept apart.

    Attributes:
        slice_ptr: [ceil(N/16) + 1] int32, the first slot of each slice.
        columns: [S, 16] int16, the bits of a uint16; K at pads.
        order: [S, 16] int32, position of the entry in CSR order; -1 at pads.
        shape: (N, K), output and input features.
    """

    slice_ptr: Tensor
    columns: Tensor
    order: Tensor
    shape: tuple[int, int]


def tile_base(codes: Tensor, scales: Tensor, group_size: int) -> BaseTiles:
    """Puts an INT4 matrix into tile order.

    Args:
        codes: [N, K] int8 in -8 .. 7.
        scales: [N, K / group_size] float16 or bfloat16.
        group_size: 32, 64 or 128.

    Raises:
        UnsupportedLayer: a shape, dtype or code that tiles cannot hold; every reason is listed.
    """
    if codes.dim() != 2 or scales.dim() != 2:
        raise UnsupportedLayer(
            f"codes and scales must be matrices, found {list(codes.shape)} and {list(scales.shape)}"
        )
    rows, columns = codes.shape
    problems = []
    if group_size not in GROUP_SIZES:
        problems.append(f"group_size must be one of {GROUP_SIZES}, found {group_size}")
    elif columns == 0 or columns % group_size != 0:
        problems.append(f"K = {columns} is not a multiple of group_size {group_size}")
    elif tuple(scales.shape) != (rows, columns // group_size):
        expected = [rows, columns // group_size]
        problems.append(f"scales must be {expected}, found {list(scales.shape)}")
    if rows == 0:
        problems.append("N must not be 0")
    if columns > MAX_COLUMNS:
        problems.append(f"K = {columns} is above {MAX_COLUMNS}")
    if codes.dtype != torch.int8:
        problems.append(f"codes must be int8, found {codes.dtype}")
    elif codes.numel() and (int(codes.min()) < -8 or int(codes.max()) > 7):
        problems.append(
            f"codes must lie in -8 .. 7, found {int(codes.min())} .. {int(codes.max())}"
        )
    if scales.dtype not in (torch.float16, torch.bfloat16):
        problems.append(f"scales must be float16 or bfloat16, found {scales.dtype}")
    if problems:
        raise UnsupportedLayer("cannot tile this base: " + "; ".join(problems))

    tiles = -(-rows // TILE_ROWS)
    padding = (0, 0, 0, tiles * TILE_ROWS - rows)
    nibbles = torch.nn.functional.pad(codes, padding).view(torch.uint8) & 0xF
    pairs = nibbles.view(tiles, TILE_ROWS, columns // TILE_INPUTS, TILE_INPUTS // 2, 2)
    packed = pairs[..., 0] | (pairs[..., 1] << 4)
    words = packed.permute(0, 2, 1, 3).reshape(tiles, columns // TILE_INPUTS, TILE_ROWS * 4)
    padded = torch.nn.functional.pad(scales, padding).view(tiles, TILE_ROWS, -1)
    return BaseTiles(
        on_large_pages(words.contiguous()),
        padded.transpose(1, 2).contiguous(),
        (rows, columns),
        group_size,
    )


def untile_base(base: BaseTiles) -> tuple[Tensor, Tensor]:
    """Undoes ``tile_base``: codes [N, K] int8 and scales [N, K / group_size]."""
    rows, columns = base.shape
    tiles = base.tiles.shape[0]
    packed = base.tiles.view(tiles, columns // TILE_INPUTS, TILE_ROWS, 4).permute(0, 2, 1, 3)
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1)
    codes = nibbles.reshape(tiles * TILE_ROWS, columns).view(torch.int8)
    codes = torch.where(codes > 7, codes - 16, codes)
    scales = base.scales.transpose(1, 2).reshape(tiles * TILE_ROWS, -1)
    return codes[:rows].contiguous(), scales[:rows].contiguous()


def stack_base(parts: Sequence[BaseTiles]) -> BaseTiles:
    """One matrix of the rows of several, in their order: tiles are copied as they are.

    Args:
        parts: of one K, group_size and scale dtype, on one device; N of each is whole tiles.
    """
    first = parts[0]
    return BaseTiles(
        on_large_pages(torch.cat([part.tiles for part in parts])),
        torch.cat([part.scales for part in parts]),
        (sum(part.shape[0] for part in parts), first.shape[1]),
        first.group_size,
    )


def tile_csr(indptr: Tensor, indices: Tensor, shape: tuple[int, int]) -> OrthoTiles:
    """Puts the positions of a CSR matrix into SELL-16 order.

    Args:
        indptr: [N + 1] int32 or int64.
        indices: [nnz] int32 or int64, increasing within a row.
        shape: (N, K).

    Raises:
        UnsupportedLayer: K does not fit 16 bits.
        CorruptStream: the arrays are not a CSR matrix of this shape; every reason is listed.
    """
    rows, columns = shape
    if columns > MAX_COLUMNS:
        raise UnsupportedLayer(
            f"cannot tile a stream of K = {columns} columns: at most {MAX_COLUMNS}"
        )
    starts = indptr.to(torch.int64)
    where = indices.to(torch.int64)
    _check_csr(starts, where, shape)
    lengths = starts.diff()
    owner = torch.repeat_interleave(torch.arange(rows, device=indptr.device), lengths)
    slices = -(-rows // SLICE_ROWS)
    widths = torch.nn.functional.pad(lengths, (0, slices * SLICE_ROWS - rows))
    widths = widths.view(slices, SLICE_ROWS).amax(dim=1)
    slice_ptr = torch.nn.functional.pad(widths.cumsum(0), (1, 0))
    slots = int(slice_ptr[-1])

    entries = torch.arange(where.numel(), device=where.device)
    slot = slice_ptr[owner // SLICE_ROWS] + entries - starts[owner]
    place = slot * SLICE_ROWS + owner % SLICE_ROWS
    tiled = torch.full((slots * SLICE_ROWS,), columns, dtype=torch.int32, device=where.device)
    tiled[place] = where.to(torch.int32)
    order = torch.full_like(tiled, -1)
    order[place] = entries.to(torch.int32)
    signed = torch.where(tiled > 32767, tiled - 65536, tiled).to(torch.int16)
    return OrthoTiles(
        slice_ptr.to(torch.int32),
        signed.view(slots, SLICE_ROWS),
        order.view(slots, SLICE_ROWS),
        (rows, columns),
    )


def tile_values(values: Tensor, order: Tensor) -> Tensor:
    """Gathers CSR values [nnz] into slots [S, 16]; pads are exactly 0. Differentiable in values."""
    index = torch.where(order < 0, values.numel(), order).flatten()
    extended = torch.cat((values, values.new_zeros(1)))
    return extended.index_select(0, index).view(order.shape)


def _check_csr(indptr: Tensor, indices: Tensor, shape: tuple[int, int]) -> None:
    rows, columns = shape
    problems = []
    if indptr.dim() != 1 or indptr.numel() != rows + 1:
        problems.append(f"indptr must be [{rows + 1}], found {list(indptr.shape)}")
    elif int(indptr[0]) != 0 or int(indptr[-1]) != indices.numel():
        problems.append(
            f"indptr must run from 0 to {indices.numel()}, "
            f"found {int(indptr[0])} to {int(indptr[-1])}"
        )
    elif bool((indptr.diff() < 0).any()):
        problems.append("indptr decreases")
    elif indices.numel():
        first = torch.zeros(indices.numel() + 1, dtype=torch.bool, device=indices.device)
        first[indptr] = True
        if bool(((indices.diff() <= 0) & ~first[1:-1]).any()):
            problems.append("indices are not strictly increasing within each row")
    if indices.dim() != 1:
        problems.append(f"indices must be one-dimensional, found {list(indices.shape)}")
    elif indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= columns):
        problems.append(
            f"indices must lie in 0 .. {columns - 1}, "
            f"found {int(indices.min())} .. {int(indices.max())}"
        )
    if problems:
        raise CorruptStream(f"not a CSR matrix of shape {list(shape)}: " + "; ".join(problems))
