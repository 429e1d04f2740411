"""The ops in plain torch: the meaning of the kernels, on any device.

Sums run in float32 (float64 for float64 x), as in the kernels. On the CPU a closed stream is not
read. Elsewhere alpha must not be looked at from the host (a CUDA graph replays with another alpha),
so every row is computed and the closed ones are dropped by selection, never by a product with 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from libortho.layout import SLICE_ROWS, TILE_INPUTS, BaseTiles, untile_base


def dual_linear(
    x: Tensor,
    tiles: Tensor,
    scales: Tensor,
    rows: int,
    group_size: int,
    slice_ptr: Sequence[Tensor],
    columns: Sequence[Tensor],
    values: Sequence[Tensor],
    alpha: Tensor,
) -> Tensor:
    """y [M, N] in the dtype of x; arguments as in ``schema.SCHEMAS``."""
    wide = _accumulator(x)
    inputs = tiles.shape[1] * TILE_INPUTS
    xs = x.to(wide)
    y = xs @ _base(tiles, scales, rows, group_size, wide).T
    for index, value in enumerate(values):
        weight = alpha[index].to(wide)
        if x.device.type != "cpu" or bool(weight.any()):
            ortho = _dense(slice_ptr[index], columns[index], value, rows, inputs, wide)
            # All rows: a product of fewer may sum in another order, and a row's bits would then
            # depend on the alpha of others.
            y = _add_by_selection(y, xs, ortho, weight)
    return y.to(x.dtype)


def dual_linear_backward(
    grad: Tensor,
    x: Tensor | None,
    tiles: Tensor,
    scales: Tensor,
    rows: int,
    group_size: int,
    slice_ptr: Sequence[Tensor],
    columns: Sequence[Tensor],
    values: Sequence[Tensor],
    alpha: Tensor,
    need_x: bool,
    need_values: Sequence[bool],
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x and of each stream's values; an unwanted one is empty."""
    wide = _accumulator(grad)
    inputs = tiles.shape[1] * TILE_INPUTS
    g = grad.to(wide)
    grad_x = g.new_empty((0, inputs))
    if need_x:
        grad_x = g @ _base(tiles, scales, rows, group_size, wide)
    grad_values = []
    for index, (value, need) in enumerate(zip(values, need_values, strict=True)):
        weight = alpha[index].to(wide)
        if grad.device.type == "cpu" and not bool(weight.any()):
            grad_values.append(
                torch.zeros_like(value) if need else value.new_empty((0, SLICE_ROWS))
            )
            continue
        opened = weight[:, None] != 0
        scaled = torch.where(opened, weight[:, None] * g, 0.0)
        if need_x:
            ortho = _dense(slice_ptr[index], columns[index], value, rows, inputs, wide)
            grad_x = _add_by_selection(grad_x, g, ortho.T, weight)
        if not need:
            grad_values.append(value.new_empty((0, SLICE_ROWS)))
            continue
        if x is None:
            raise RuntimeError("x: needed for the gradient of values")
        outer = torch.zeros(_padded(rows), inputs + 1, dtype=wide, device=grad.device)
        outer[:rows, :inputs] = scaled.T @ torch.where(opened, x.to(wide), 0.0)
        row, column = _positions(slice_ptr[index], columns[index], inputs)
        grad_values.append(outer[row, column].to(value.dtype))
    return grad_x.to(grad.dtype), grad_values


def add_streams(
    y: Tensor,
    x: Tensor,
    alpha: Tensor,
    which: Sequence[int],
    slice_ptr: Sequence[Tensor],
    columns: Sequence[Tensor],
    values: Sequence[Tensor],
) -> None:
    """Adds the streams to y [M, N] in place; arguments as in ``schema.SCHEMAS``."""
    xs, wide = x.float(), y.float()
    for index, row in enumerate(which):
        weight = alpha[row, : x.shape[0]]
        if x.device.type != "cpu" or bool(weight.any()):
            ortho = _dense(
                slice_ptr[index],
                columns[index],
                values[index],
                y.shape[1],
                x.shape[1],
                torch.float32,
            )
            wide = _add_by_selection(wide, xs, ortho, weight)
    y.copy_(wide)


def _add_by_selection(y: Tensor, x: Tensor, weight: Tensor, alpha: Tensor) -> Tensor:
    """y + alpha (x weight^T) where alpha is not 0, y elsewhere, whatever the weights hold."""
    return torch.where(alpha[:, None] != 0, y + alpha[:, None] * (x @ weight.T), y)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _padded(rows: int) -> int:
    return -(-rows // SLICE_ROWS) * SLICE_ROWS


def _base(tiles: Tensor, scales: Tensor, rows: int, group_size: int, dtype: torch.dtype) -> Tensor:
    shape = (rows, tiles.shape[1] * TILE_INPUTS)
    codes, scale = untile_base(BaseTiles(tiles, scales, shape, group_size))
    return codes.to(dtype) * scale.to(dtype).repeat_interleave(group_size, dim=1)


def _positions(slice_ptr: Tensor, columns: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Row and column of every slot [S, 16]; pads stand in column K."""
    slots = columns.shape[0]
    slices = torch.arange(slice_ptr.shape[0] - 1, device=columns.device)
    owner = torch.repeat_interleave(slices, slice_ptr.diff().long(), output_size=slots)
    lanes = torch.arange(SLICE_ROWS, device=columns.device)
    row = owner[:, None] * SLICE_ROWS + lanes
    return row, (columns.long() & 0xFFFF).clamp(max=inputs)


def _dense(
    slice_ptr: Tensor, columns: Tensor, values: Tensor, rows: int, inputs: int, dtype: torch.dtype
) -> Tensor:
    row, column = _positions(slice_ptr, columns, inputs)
    # One column more takes the pads.
    out = torch.zeros(_padded(rows), inputs + 1, dtype=dtype, device=values.device)
    out[row, column] = values.to(dtype)
    return out[:rows, :inputs]
