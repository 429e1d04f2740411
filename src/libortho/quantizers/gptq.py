"""GPTQ: round column by column and let the columns to come make up for the error.

Frantar et al., arXiv 2210.17323. With H = L Lᵀ, L lower triangular, and the error e = w − q of
one row of the weight,

    e H eᵀ = ‖e L‖² = Σ_i L_ii² (e_i + Σ_{j>i} e_j L_ji / L_ii)²,

so, going from the last column to the first, column i is rounded from
w_i + Σ_{j>i} e_j L_ji / L_ii. That is GPTQ's rule, written with the Cholesky factor of H in place
of that of its inverse: nothing is inverted.

Columns are visited group by group, those with the strongest inputs first, while there is still
much left to compensate with. A group's columns stay together, so the files need no ``g_idx``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from libortho.errors import ConfigError, NumericsError
from libortho.quantizers.descent import descend
from libortho.quantizers.grid import check_weight, levels
from libortho.quantizers.mse import least_error_scale

DAMPING = 0.01
DESCENTS = 2
_CHUNK = 2**24

Report = Callable[[int, int], None]


def gptq(
    weight: Tensor,
    hessian: Tensor,
    group_size: int,
    *,
    bits: int = 4,
    scale_dtype: torch.dtype = torch.float16,
    damping: float = DAMPING,
    descents: int = DESCENTS,
    report: Report | None = None,
) -> tuple[Tensor, Tensor]:
    """Round a weight so that its output errs least on inputs with a given second moment.

    The scale of a group is chosen on the weights as compensated by then, by squared error, each
    column weighted by L_ii², its share of the output error.

    Args:
        weight: float32 [N, K].
        hessian: E[x xᵀ] of the layer's inputs, float32 [K, K], symmetric.
        group_size: Weights per scale.
        bits: 2, 3 or 4.
        scale_dtype: What the scales are rounded to before the weights are.
        damping: Added to the diagonal, as a fraction of its mean.
        descents: Passes of coordinate descent afterwards.
        report: Called with (steps done, steps) as the work goes on.

    Returns:
        codes int8 [N, K] and scales [N, K/group_size].

    Raises:
        ConfigError: A shape or an option does not fit.
        NumericsError: The weight or the Hessian is not finite, the Hessian is zero or not
            positive definite, or a scale does not fit ``scale_dtype``.
    """
    check_weight(weight, group_size)
    levels(bits)
    rows, columns = weight.shape
    ridge = _ridge(hessian, columns, damping)
    order = _order(hessian.diagonal(), group_size)
    factor = _factor(hessian, order, ridge)
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, columns // group_size, dtype=scale_dtype)
    # Rows do not depend on one another: chunks of them bound the memory.
    height = max(1, _CHUNK // columns)
    starts = range(0, rows, height)
    for start in starts:
        part = slice(start, start + height)
        codes[part], scales[part] = _round(
            weight[part], factor, order, group_size, bits, scale_dtype
        )
        if report is not None:
            report(start // height + 1, 2 * len(starts))
    del factor
    for start in starts:
        part = slice(start, start + height)
        codes[part], scales[part] = descend(
            weight[part], codes[part], scales[part], hessian, ridge, bits=bits, passes=descents
        )
        if report is not None:
            report(len(starts) + start // height + 1, 2 * len(starts))
    return codes, scales


def _round(
    weight: Tensor,
    factor: Tensor,
    order: Tensor,
    group_size: int,
    bits: int,
    scale_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    low, high = levels(bits)
    rows, columns = weight.shape
    pivots = factor.diagonal().clone()
    # Transposed, so that a column of the weight is contiguous.
    original = weight.t()[order]
    error = torch.empty_like(original)
    ordered = torch.empty(columns, rows, dtype=torch.int8)
    scales = torch.empty(rows, columns // group_size, dtype=scale_dtype)
    for start in range(columns - group_size, -1, -group_size):
        end = start + group_size
        target = original[start:end].clone()
        if end < columns:
            target.addmm_((factor[end:, start:end] / pivots[start:end]).t(), error[end:])
        scale = least_error_scale(
            target.t().contiguous(), bits, scale_dtype, pivots[start:end].square()
        )
        scales[:, int(order[start]) // group_size] = scale
        step = scale.to(torch.float32)
        within = factor[start:end, start:end] / pivots[start:end]
        for i in range(group_size - 1, -1, -1):
            code = (target[i] / step).round_().clamp_(low, high)
            ordered[start + i] = code
            torch.sub(original[start + i], code.mul_(step), out=error[start + i])
            if i:
                target[:i].addr_(within[i, :i], error[start + i])
    codes = torch.empty_like(ordered)
    codes[order] = ordered
    return codes.t().contiguous(), scales


def _ridge(hessian: Tensor, columns: int, damping: float) -> float:
    """What is added to the diagonal, after the Hessian was found usable."""
    if hessian.dtype != torch.float32 or tuple(hessian.shape) != (columns, columns):
        raise ConfigError(
            f"expected a float32 Hessian [{columns}, {columns}], found {hessian.dtype} "
            f"{list(hessian.shape)}."
        )
    if not bool(torch.isfinite(hessian).all()):
        raise NumericsError("the Hessian holds NaN or Inf.")
    mean = float(hessian.diagonal().mean())
    if mean <= 0:
        raise NumericsError("the Hessian is zero: no calibration text reached the layer.")
    return damping * mean


def _order(diagonal: Tensor, group_size: int) -> Tensor:
    """Columns from the one visited last to the one visited first, groups kept together."""
    groups = diagonal.view(-1, group_size)
    within = groups.argsort(dim=1, stable=True)
    order = within + torch.arange(0, diagonal.numel(), group_size).unsqueeze(1)
    return order[groups.mean(dim=1).argsort(stable=True)].flatten()


def _factor(hessian: Tensor, order: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor L [K, K] of the reordered, damped Hessian."""
    damped = torch.empty_like(hessian)
    for start in range(0, order.numel(), 1024):  # in one step the copy would be made twice
        chosen = order[start : start + 1024]
        damped[start : start + 1024] = hessian[chosen][:, order]
    damped.diagonal().add_(ridge)
    # A symmetric matrix is its own transpose, and LAPACK works in place on columns.
    column_major = damped.t()
    info = torch.empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(column_major, out=(column_major, info))
    if int(info):
        raise NumericsError(
            f"the damped Hessian is not positive definite (minor {int(info)}); use more "
            "calibration windows."
        )
    return column_major
