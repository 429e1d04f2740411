"""The ops' schemas and their shapes without data, for ``torch.compile`` and ``torch.export``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from libortho.layout import GROUP_SIZES, SLICE_ROWS, TILE_INPUTS, TILE_ROWS

# ``csrc/torch/binding.cpp`` defines the same ops where the native library is loaded.
SCHEMAS = (
    "dual_linear(Tensor x, Tensor tiles, Tensor scales, int rows, int group_size, "
    "Tensor[] slice_ptr, Tensor[] columns, Tensor[] values, Tensor alpha) -> Tensor",
    "dual_linear_backward(Tensor grad, Tensor? x, Tensor tiles, Tensor scales, int rows, "
    "int group_size, Tensor[] slice_ptr, Tensor[] columns, Tensor[] values, Tensor alpha, "
    "bool need_x, bool[] need_values) -> (Tensor, Tensor[])",
    "add_streams(Tensor(a!) y, Tensor x, Tensor alpha, int[] which, Tensor[] slice_ptr, "
    "Tensor[] columns, Tensor[] values) -> ()",
)


def register_fakes() -> None:
    """Tells the dispatcher the shapes that the ops return."""
    torch.library.register_fake("libortho::dual_linear", _forward)
    torch.library.register_fake("libortho::dual_linear_backward", _backward)
    torch.library.register_fake("libortho::add_streams", _add_streams)


def _check(
    batch: int,
    tiles: Tensor,
    scales: Tensor,
    rows: int,
    group_size: int,
    slice_ptr: Sequence[Tensor],
    columns: Sequence[Tensor],
    values: Sequence[Tensor],
    alpha: Tensor,
) -> int:
    torch._check(
        group_size in GROUP_SIZES,
        lambda: f"group_size: expected one of {GROUP_SIZES}, found {group_size}",
    )
    count = -(-rows // TILE_ROWS)
    torch._check(
        tiles.dim() == 3 and tiles.shape[0] == count and tiles.shape[2] == 4 * TILE_ROWS,
        lambda: f"tiles: expected [{count}, K/8, 128] for {rows} rows, found {list(tiles.shape)}",
    )
    inputs = tiles.shape[1] * TILE_INPUTS
    torch._check(
        scales.dim() == 3 and scales.shape == (count, inputs // group_size, TILE_ROWS),
        lambda: (
            f"scales: expected [{count}, {inputs // group_size}, 32], found {list(scales.shape)}"
        ),
    )
    torch._check(
        len(slice_ptr) == len(columns) == len(values),
        lambda: "streams: slice_ptr, columns and values differ in number",
    )
    torch._check(
        alpha.dim() == 2 and alpha.shape[0] == len(values) and alpha.shape[1] == batch,
        lambda: f"alpha: expected [{len(values)}, {batch}], found {list(alpha.shape)}",
    )
    for where, value in zip(columns, values, strict=True):
        torch._check(
            value.dim() == 2 and value.shape == where.shape and value.shape[1] == SLICE_ROWS,
            lambda value=value: f"values: expected [S, 16] as columns, found {list(value.shape)}",
        )
    return inputs


def _forward(
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
    torch._check(x.dim() == 2, lambda: f"x: expected [M, K], found {list(x.shape)}")
    inputs = _check(x.shape[0], tiles, scales, rows, group_size, slice_ptr, columns, values, alpha)
    torch._check(x.shape[1] == inputs, lambda: f"x: expected [M, {inputs}], found {list(x.shape)}")
    return x.new_empty((x.shape[0], rows))


def _backward(
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
    torch._check(
        grad.dim() == 2 and grad.shape[1] == rows,
        lambda: f"grad: expected [M, {rows}], found {list(grad.shape)}",
    )
    inputs = _check(
        grad.shape[0], tiles, scales, rows, group_size, slice_ptr, columns, values, alpha
    )
    grad_values = [
        grad.new_empty((value.shape[0] if need else 0, SLICE_ROWS), dtype=value.dtype)
        for value, need in zip(values, need_values, strict=True)
    ]
    return grad.new_empty((grad.shape[0] if need_x else 0, inputs)), grad_values


def _add_streams(
    y: Tensor,
    x: Tensor,
    alpha: Tensor,
    which: Sequence[int],
    slice_ptr: Sequence[Tensor],
    columns: Sequence[Tensor],
    values: Sequence[Tensor],
) -> None:
    torch._check(
        x.dim() == 2 and y.dim() == 2 and y.dtype == x.dtype,
        lambda: f"y and x: expected matrices of one dtype, found {list(y.shape)}, {list(x.shape)}",
    )
    torch._check(
        len(which) == len(slice_ptr) == len(columns) == len(values),
        lambda: "streams: which, slice_ptr, columns and values differ in number",
    )
