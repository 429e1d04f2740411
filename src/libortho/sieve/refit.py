"""Least-squares values on a fixed support.

Per output row i with support S, the minimiser of (t − p) H (t − p)ᵀ over vectors p that vanish
outside S is p_S = H_SS⁻¹ (H t)_S.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from libortho.errors import NumericsError

_CHUNK_BYTES = 256 * 2**20
_SLACK = 4


def damped(hessian: Tensor, damping: float = 0.01) -> Tensor:
    """H + damping · mean(diag H) · I: invertible, whatever the calibration text was."""
    ridge = damping * hessian.diagonal().mean().clamp_min(torch.finfo(hessian.dtype).tiny)
    return hessian + torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device) * ridge


def inverse_factor(hessian: Tensor) -> Tensor:
    """U upper triangular [K, K] with Uᵀ U = H⁻¹, for H positive definite."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def refit(target: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    """Values [N, K], zero outside ``mask``, that bring H-weighted error to its minimum.

    Args:
        target: T fp32 [N, K].
        hessian: H fp32 [K, K], positive definite (see :func:`damped`).
        mask: boolean [N, K].

    Raises:
        NumericsError: H is not positive definite on some row's support.
    """
    values = torch.zeros_like(target)
    counts = mask.sum(1)
    pull = target @ hessian
    order = torch.argsort(counts)
    widths = counts[order].tolist()
    start = bisect_right(widths, 0)
    while start < len(order):
        stop = _chunk_end(widths, start)
        rows = order[start:stop]
        values[rows] = _solve(pull[rows], hessian, mask[rows], widths[stop - 1])
        start = stop
    return values


def output_error(target: Tensor, values: Tensor, hessian: Tensor) -> float:
    """tr((T − P) H (T − P)ᵀ) / tr(T H Tᵀ): 1 when nothing is stored, 0 when all is."""
    missed = target - values
    whole = float(((target @ hessian) * target).sum())
    return float(((missed @ hessian) * missed).sum()) / whole if whole else 0.0


def _chunk_end(counts: Sequence[int], start: int) -> int:
    """The longest run of rows (sorted by count) that pads little and fits the chunk."""
    widest = counts[start] + max(_SLACK, counts[start] // 4)
    stop = start + 1
    while stop < len(counts) and counts[stop] <= widest:
        if (stop + 1 - start) * counts[stop] ** 2 * 4 > _CHUNK_BYTES:
            break
        stop += 1
    return stop


def _solve(pull: Tensor, hessian: Tensor, mask: Tensor, width: int) -> Tensor:
    # Rows have different counts: pad each system with unit equations whose solution is 0.
    columns = torch.argsort(mask.to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
    real = torch.gather(mask, 1, columns)
    systems = hessian[columns[:, :, None], columns[:, None, :]]
    both = real[:, :, None] & real[:, None, :]
    identity = torch.eye(width, dtype=hessian.dtype, device=hessian.device)
    systems = torch.where(both, systems, identity)
    right = torch.where(real, torch.gather(pull, 1, columns), 0.0)
    factors, failed = torch.linalg.cholesky_ex(systems)
    if bool(failed.any()):
        raise NumericsError(
            "least squares: H is not positive definite on the support of "
            f"{int(failed.count_nonzero())}"
            " rows; give more calibration text or a larger damping"
        )
    solved = torch.cholesky_solve(right[:, :, None], factors)[:, :, 0]
    return torch.zeros_like(pull).scatter_(1, columns, torch.where(real, solved, 0.0))
