"""Derivatives of ``libortho::dual_linear``: in x, and in the values of the streams.

With g = dL/dy:  dL/dx = g base + sum_s alpha_s (g ortho_s),  and for the entry j of stream s at row
n, column k:  dL/dv_j = sum_m alpha_s[m] g[m, n] x[m, k]. The base is frozen, alpha is a gate:
neither has a gradient. Rows with alpha = 0 take no part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def register_derivatives() -> None:
    """Registers the formula with autograd."""
    torch.library.register_autograd(
        "libortho::dual_linear", _backward, setup_context=_setup_context
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, tiles, scales, rows, group_size, slice_ptr, columns, values, alpha = inputs
    # x is the batch's largest tensor: kept only when a stream learns.
    kept = x if any(value.requires_grad for value in values) else None
    ctx.save_for_backward(kept, tiles, scales, alpha, *slice_ptr, *columns, *values)
    ctx.rows, ctx.group_size, ctx.streams = rows, group_size, len(values)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, tiles, scales, alpha, *flat = ctx.saved_tensors
    count = ctx.streams
    need_x = bool(ctx.needs_input_grad[0])
    need_values = [bool(need) for need in ctx.needs_input_grad[7]] if count else []
    grad_x, grad_values = torch.ops.libortho.dual_linear_backward(
        grad,
        x,
        tiles,
        scales,
        ctx.rows,
        ctx.group_size,
        flat[:count],
        flat[count : 2 * count],
        flat[2 * count :],
        alpha,
        need_x,
        need_values,
    )
    nothing = [None] * count
    chosen = [value if need else None for value, need in zip(grad_values, need_values, strict=True)]
    return (
        grad_x if need_x else None, None, None, None, None, nothing, list(nothing), chosen, None
    )  # fmt: skip
