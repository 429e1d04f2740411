"""Round to nearest with the scale whose squared error is least, clipping where that pays."""

from __future__ import annotations

import torch
from torch import Tensor

from libortho.quantizers.grid import check_weight, covering_scale, round_to_grid, stored

# Fractions of the covering scale that are tried. Two bits want to clip far more than four; a
# scale above the covering one pays where the largest weight lies on the longer, negative side.
_LARGEST_FRACTION = 1.15
_SMALLEST_FRACTION = {4: 0.5, 3: 0.4, 2: 0.25}
_STEPS = 64
_CHUNK = 2**18


def mse(
    weight: Tensor,
    group_size: int,
    *,
    bits: int = 4,
    scale_dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, Tensor]:
    """Search, group by group, the scale with the least squared rounding error.

    Args:
        weight: float32 [N, K].
        group_size: Weights per scale.
        bits: 2, 3 or 4.
        scale_dtype: Every candidate is rounded to it before it is judged.

    Returns:
        codes int8 [N, K] and scales [N, K/group_size].

    Raises:
        ConfigError: The shape or an option does not fit.
        NumericsError: The weight is not finite or its scale does not fit ``scale_dtype``.
    """
    check_weight(weight, group_size)
    groups = weight.view(weight.shape[0], -1, group_size)
    rows = max(1, _CHUNK // weight.shape[1])
    scales = torch.empty(groups.shape[:2], dtype=scale_dtype, device=weight.device)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for start in range(0, weight.shape[0], rows):
        part = slice(start, start + rows)
        scales[part] = least_error_scale(groups[part], bits, scale_dtype)
        steps = scales[part].to(torch.float32).unsqueeze(2)
        codes[part] = round_to_grid(groups[part], steps, bits).flatten(1).to(torch.int8)
    return codes, scales


def least_error_scale(
    groups: Tensor, bits: int, scale_dtype: torch.dtype, importance: Tensor | None = None
) -> Tensor:
    """The best stored scale of each group.

    Args:
        groups: float32 [..., g].
        bits: 2, 3 or 4.
        scale_dtype: Every candidate is rounded to it before it is judged.
        importance: What a squared error counts, broadcast to ``groups``; 1 without it.

    Returns:
        Scales in ``scale_dtype``, [...].
    """
    covering = covering_scale(groups, bits)
    best = stored(covering, scale_dtype)
    least = _error(groups, best, bits, importance)
    span = _LARGEST_FRACTION - _SMALLEST_FRACTION[bits]
    for step in range(_STEPS + 1):
        fraction = _LARGEST_FRACTION - span * step / _STEPS
        candidate = stored(covering * fraction, scale_dtype)
        error = _error(groups, candidate, bits, importance)
        better = error < least
        best = torch.where(better, candidate, best)
        least = torch.where(better, error, least)
    return best


def _error(groups: Tensor, scales: Tensor, bits: int, importance: Tensor | None) -> Tensor:
    scale = scales.to(torch.float32).unsqueeze(-1)
    error = round_to_grid(groups, scale, bits).mul_(scale).sub_(groups).square_()
    if importance is not None:
        error *= importance
    return _sum_last(error)


def _sum_last(values: Tensor) -> Tensor:
    """Sum over the last axis by halves: the same order, hence the same bits, on every machine."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        folded = values[..., :half] + values[..., half : 2 * half]
        if values.shape[-1] % 2:
            folded[..., 0] += values[..., -1]
        values = folded
    return values.squeeze(-1)
