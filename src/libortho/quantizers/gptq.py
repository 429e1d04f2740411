"""GPTQ: round column by column and let the columns to come make up for the error.

Frantar et al., arXiv 2210.17323. With H = L Lᵀ, L lower triangular, and the error e = w − q of
one row of the weight,

    e H eᵀ = ‖e L‖² = Σ_i L_ii² (e_i + Σ_{j>i} e_j L_ji / L_ii)²,

so, going from the last column to the first, column i is rounded from
w_i + Σ_{j>i} e_j L_ji / L_ii. That is GPTQ's rule, written with the Cholesky factor of H in place
of that of its inverse: nothing is inverted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from libortho.errors import ConfigError, NumericsError
from libortho.quantizers.grid import check_weight, levels
from libortho.quantizers.mse import least_error_scale

DAMPING = 0.01

Report = Callable[[int, int], None]


def gptq(
    weight: Tensor,
    hessian: Tensor,
    group_size: int,
    *,
    bits: int = 4,
    scale_dtype: torch.dtype = torch.float16,
    damping: float = DAMPING,
    report: Report | None = None,
) -> tuple[Tensor, Tensor]:
    """Round a weight so that its output errs least on inputs with a given second moment.

    Columns keep their places. The scale of a group is chosen by squared error, on the weights as
    compensated by then, when the group's turn comes.

    Args:
        weight: float32 [N, K].
        hessian: E[x xᵀ] of the layer's inputs, float32 [K, K], symmetric.
        group_size: Weights per scale.
        bits: 2, 3 or 4.
        scale_dtype: What the scales are rounded to before the weights are.
        damping: Added to the diagonal, as a fraction of its mean.
        report: Called with (columns rounded, columns) after each group.

    Returns:
        codes int8 [N, K] and scales [N, K/group_size].

    Raises:
        ConfigError: A shape or an option does not fit.
        NumericsError: The weight or the Hessian is not finite, the Hessian is zero or not
            positive definite, or a scale does not fit ``scale_dtype``.
    """
    check_weight(weight, group_size)
    low, high = levels(bits)
    rows, columns = weight.shape
    factor = _factor(hessian, columns, damping)
    pivots = factor.diagonal().clone()
    # Transposed, so that a column of the weight is contiguous.
    original = weight.t().contiguous()
    error = torch.empty_like(original)
    codes = torch.empty(columns, rows, dtype=torch.int8)
    scales = torch.empty(rows, columns // group_size, dtype=scale_dtype)
    for start in range(columns - group_size, -1, -group_size):
        end = start + group_size
        target = original[start:end].clone()
        if end < columns:
            below = factor[end:, start:end] / pivots[start:end]
            target.addmm_(below.t(), error[end:])
        scale = least_error_scale(target.t().contiguous(), bits, scale_dtype)
        scales[:, start // group_size] = scale
        step = scale.to(torch.float32)
        within = factor[start:end, start:end] / pivots[start:end]
        for i in range(group_size - 1, -1, -1):
            code = (target[i] / step).round_().clamp_(low, high)
            codes[start + i] = code
            torch.sub(original[start + i], code.mul_(step), out=error[start + i])
            if i:
                target[:i].addr_(within[i, :i], error[start + i])
        if report is not None:
            report(columns - start, columns)
    return codes.t().contiguous(), scales


def _factor(hessian: Tensor, columns: int, damping: float) -> Tensor:
    """The Cholesky factor L [K, K] of the damped Hessian."""
    if hessian.dtype != torch.float32 or tuple(hessian.shape) != (columns, columns):
        raise ConfigError(
            f"expected a float32 Hessian [{columns}, {columns}], found {hessian.dtype} "
            f"{list(hessian.shape)}."
        )
    mean = float(hessian.diagonal().mean())
    if not bool(torch.isfinite(hessian).all()):
        raise NumericsError("the Hessian holds NaN or Inf.")
    if mean <= 0:
        raise NumericsError("the Hessian is zero: no calibration text reached the layer.")
    damped = hessian.clone()
    damped.diagonal().add_(damping * mean)
    factor, info = torch.linalg.cholesky_ex(damped)
    if int(info):
        raise NumericsError(
            f"the Hessian damped by {damping} of its mean diagonal is not positive definite (minor "
            f"{int(info)}); use more calibration windows."
        )
    result: Tensor = factor
    return result
