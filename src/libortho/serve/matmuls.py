"""Factored and dense parts of a stream as one op that graphs cannot look into."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from libortho.linear import add_gated


@torch.library.custom_op("libortho::add_matmuls", mutates_args=("y",))
def add_matmuls(
    y: Tensor,
    x: Tensor,
    alpha: Tensor,
    which: int,
    start: int,
    factors: list[Tensor],
    scaling: float,
) -> None:
    """Add α · scaling · x · factors[0]ᵀ · … to columns of y, on the rows that alpha opens.

    Args:
        y: [M, N], changed in place from column ``start`` on; closed rows keep their bits.
        x: [M, K].
        alpha: fp32 [streams, T >= M]; row ``which`` counts.
        factors: a [r, K] and b [n, r] of an adapter, or a whole difference [n, K].
    """
    target = y.narrow(1, start, factors[-1].shape[0])

    def product(rows: Tensor) -> Tensor:
        for factor in factors:
            rows = linear(rows.to(factor.dtype), factor)
        return rows * scaling

    target.copy_(add_gated(target, x, product, alpha[which, : x.shape[0]]))


@add_matmuls.register_fake
def _(
    y: Tensor,
    x: Tensor,
    alpha: Tensor,
    which: int,
    start: int,
    factors: list[Tensor],
    scaling: float,
) -> None:
    return None
