"""The grid that weights are rounded to: integer levels times a scale as stored."""

from __future__ import annotations

import torch
from torch import Tensor

from libortho.errors import ConfigError, NumericsError


def levels(bits: int) -> tuple[int, int]:
    """The lowest and the highest code of ``bits`` bits, e.g. (-8, 7) for 4.

    Raises:
        ConfigError: ``bits`` is not 2, 3 or 4.
    """
    if bits not in (2, 3, 4):
        raise ConfigError(f"bits = {bits}; expected 2, 3 or 4 (INT4 files hold all of them).")
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def check_weight(weight: Tensor, group_size: int | None) -> None:
    """Check a weight to be rounded: float32 [N, K] of finite numbers, whole groups.

    Raises:
        ConfigError: K is not a multiple of ``group_size``, or the tensor is not float32 [N, K].
        NumericsError: It holds NaN or Inf.
    """
    if weight.dim() != 2 or weight.dtype != torch.float32:
        raise ConfigError(
            f"expected a float32 weight [N, K], found {weight.dtype} {list(weight.shape)}."
        )
    if group_size is not None and (group_size < 1 or weight.shape[1] % group_size):
        raise ConfigError(
            f"{weight.shape[1]} inputs are not divisible by the group size {group_size}."
        )
    if not bool(torch.isfinite(weight).all()):
        count = int((~torch.isfinite(weight)).sum())
        raise NumericsError(f"the weight holds {count} numbers that are NaN or Inf.")


def stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they will be stored: rounded to ``dtype``, never below its smallest normal.

    An all-zero group would have scale 0, and 0/0 is NaN.

    Raises:
        NumericsError: A scale does not fit into ``dtype``.
    """
    rounded = scales.to(dtype).clamp(min=torch.finfo(dtype).smallest_normal)
    if not bool(torch.isfinite(rounded).all()):
        raise NumericsError(
            f"a scale of {float(scales.max()):.3g} does not fit into {dtype}; the weights are "
            "too large."
        )
    return rounded


def covering_scale(groups: Tensor, bits: int) -> Tensor:
    """The smallest scale that clips nothing: max(max w / high, min w / low) over the last axis."""
    low, high = levels(bits)
    smallest, largest = groups.aminmax(dim=-1)
    return torch.maximum(largest / high, smallest / low)


def round_to_grid(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Codes, still float32, of ``values`` against scales that broadcast to them."""
    low, high = levels(bits)
    return (values / scales).round_().clamp_(low, high)
