"""Round to nearest with the smallest scale that clips nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from libortho.quantizers.grid import check_weight, covering_scale, round_to_grid, stored


def absmax(
    weight: Tensor,
    group_size: int | None,
    *,
    bits: int = 4,
    scale_dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, Tensor]:
    """Round each group of ``group_size`` inputs, or each whole row, against its own scale.

    Args:
        weight: float32 [N, K].
        group_size: Weights per scale; None for one scale per row.
        bits: 2, 3 or 4.
        scale_dtype: What the scales are rounded to before the weights are.

    Returns:
        codes int8 [N, K] and scales [N, K/group_size] ([N, 1] for None).

    Raises:
        ConfigError: The shape or an option does not fit.
        NumericsError: The weight is not finite or its scale does not fit ``scale_dtype``.
    """
    check_weight(weight, group_size)
    groups = weight.view(weight.shape[0], -1, group_size or weight.shape[1])
    scales = stored(covering_scale(groups, bits), scale_dtype)
    codes = round_to_grid(groups, scales.float().unsqueeze(2), bits)
    return codes.to(torch.int8).view(weight.shape), scales
