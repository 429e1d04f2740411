"""The dual-stream linear layer as one torch op, ``libortho::dual_linear``.

    y = x base^T + sum_s alpha_s (x ortho_s^T)

Row m of x with ``alpha[s, m] == 0`` does not read stream s. Sums run in float32 (float64 for
float64 x) and are rounded once to the dtype of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from libortho.layout import BaseTiles, OrthoTiles
from libortho.ops.loading import (
    Backend,
    backend,
    cuda_backend,
    is_loaded,
    trial_calls,
    try_cuda,
)

__all__ = [
    "Backend",
    "add_streams",
    "backend",
    "cuda_backend",
    "dense_route_calls",
    "dual_linear",
    "native_op_calls",
    "stored",
    "try_cuda",
]


def dual_linear(
    x: Tensor,
    base: BaseTiles,
    streams: Sequence[tuple[OrthoTiles, Tensor]],
    alpha: Tensor,
) -> Tensor:
    """Applies the base and, on the rows that alpha opens, the streams.

    Args:
        x: [M, K] float32, bfloat16, float16 or float64.
        base: the INT4 base [N, K].
        streams: positions and values [S, 16] of each stream, of the base's shape; values float16 or
            float32 (float64 too when x is float64). The values may require a gradient.
        alpha: [streams, M] float32; no gradient.

    Returns:
        y [M, N] in the dtype of x.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; the message names the argument.
    """
    if not is_loaded():
        backend()
    if x.is_cuda and not torch.compiler.is_compiling():
        try_cuda()
    operands = (x, *stored(base, streams), alpha)
    result: Tensor
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        result = torch.ops.libortho.dual_linear(*operands)
        return result
    # The derivative is registered in Python: where none is wanted, entering it and passing through
    # would cost half of what the call takes beside the kernel.
    with torch._C._AutoDispatchBelowAutograd():
        result = torch.ops.libortho.dual_linear.default(*operands)
    return result


def add_streams(
    y: Tensor,
    x: Tensor,
    alpha: Tensor,
    which: Sequence[int],
    streams: Sequence[tuple[OrthoTiles, Tensor]],
) -> None:
    """Adds streams, in place, to a product with the base that another kernel computed.

    Rows of y whose alpha is 0 keep their bits and do not read the stream. Sums run in float32 and
    are rounded to the dtype of y once.

    Args:
        y: [M, N] in the dtype of x.
        x: [M, K] float32, bfloat16 or float16.
        alpha: [A, T >= M] float32, contiguous; columns from M on are not looked at.
        which: the row of alpha of each stream.
        streams: positions and values [S, 16] of each stream.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; the message names the argument.
    """
    if not is_loaded():
        backend()
    torch.ops.libortho.add_streams(y, x, alpha, which, *_parts(streams))


def stored(base: BaseTiles, streams: Sequence[tuple[OrthoTiles, Tensor]]) -> tuple[Any, ...]:
    """What a layer holds, as the op takes it between x and alpha."""
    return base.tiles, base.scales, base.shape[0], base.group_size, *_parts(streams)


def _parts(streams: Sequence[tuple[OrthoTiles, Tensor]]) -> tuple[list[Tensor], ...]:
    return (
        [tiles.slice_ptr for tiles, _ in streams],
        [tiles.columns for tiles, _ in streams],
        [values for _, values in streams],
    )


def native_op_calls() -> int:
    """Forward calls that entered a native function, CPU or CUDA, since it was loaded."""
    calls = int(torch.ops.libortho.native_op_calls()) if backend().name == "native" else 0
    if cuda_backend().name == "native":
        calls += int(torch.ops.libortho.cuda_op_calls()) - trial_calls()
    return calls


def dense_route_calls() -> int:
    """Those of them that dequantised the base once and used torch's matmul (large batches)."""
    calls = int(torch.ops.libortho.dense_route_calls()) if backend().name == "native" else 0
    if cuda_backend().name == "native":
        calls += int(torch.ops.libortho.cuda_dense_calls())
    return calls
