"""Coordinate descent on codes and scales: polish a rounding that is already good.

As in QuantEase (Behdin et al., arXiv 2309.01885) one code at a time is set to its best value with
all others fixed; here the scale of each group takes its turn as well. No step makes
tr((Ŵ − W)(H + ridge·I)(Ŵ − W)ᵀ) larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

from libortho.quantizers.grid import levels


def descend(
    weight: Tensor,
    codes: Tensor,
    scales: Tensor,
    hessian: Tensor,
    ridge: float,
    *,
    bits: int = 4,
    passes: int,
) -> tuple[Tensor, Tensor]:
    """Improve codes and scales against the second moment of the layer's inputs.

    Args:
        weight: float32 [N, K].
        codes: int8 [N, K].
        scales: [N, K/g], positive; the result is rounded to the same dtype.
        hessian: float32 [K, K], symmetric.
        ridge: Added to the diagonal of ``hessian``.
        bits: 2, 3 or 4.
        passes: Times that every group is visited.

    Returns:
        codes int8 [N, K] and scales [N, K/g].
    """
    low, high = levels(bits)
    columns = weight.shape[1]
    size = columns // scales.shape[1]
    # Transposed, so that a column of the weight is contiguous.
    target = weight.t().contiguous()
    code = codes.t().to(torch.float32).contiguous()
    steps = scales.t().to(torch.float32).contiguous()
    error = code.mul(steps.repeat_interleave(size, 0)).sub_(target)
    diagonal = hessian.diagonal() + ridge
    for _ in range(passes):
        # Half the gradient of the loss.
        slope = torch.addmm(error, hessian, error, beta=ridge)
        for group, start in enumerate(range(0, columns, size)):
            end = start + size
            here = slice(start, end)
            local = hessian[here, here].clone()
            local.diagonal().add_(ridge)
            before = error[here].clone()
            step = _best_scale(code[here], steps[group], slope[here], local, scales.dtype)
            steps[group] = step
            torch.sub(code[here] * step, target[here], out=error[here])
            pull = slope[here].addmm(local, error[here] - before)
            for i in range(size):
                k = start + i
                best = error[k] - pull[i] / diagonal[k] + target[k]
                code[k] = best.div_(step).round_().clamp_(low, high)
                moved = code[k] * step - target[k]
                change = moved - error[k]
                error[k] = moved
                if i + 1 < size:
                    pull[i + 1 :].addr_(local[i + 1 :, i], change)
            if end < columns:
                slope[end:].addmm_(hessian[end:, here], error[here] - before)
    return code.t().to(torch.int8).contiguous(), steps.t().to(scales.dtype).contiguous()


def _best_scale(
    code: Tensor, step: Tensor, slope: Tensor, local: Tensor, dtype: torch.dtype
) -> Tensor:
    """The best stored scale [N] of a group for its codes [g, N] as they are.

    The loss is a parabola in the scale, so the stored number nearest to its bottom is the best.
    """
    bend = (code * (local @ code)).sum(0)
    bottom = step - (code * slope).sum(0) / bend
    rounded = bottom.to(dtype).to(torch.float32)
    usable = torch.isfinite(rounded) & (rounded >= torch.finfo(dtype).smallest_normal)
    return torch.where(usable & (bend > 0), rounded, step)
