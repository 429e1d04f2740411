"""Orthogonal matching pursuit (Pati et al. 1993) on a matrix, in a few large rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from libortho.sieve.refit import refit
from libortho.sieve.support import top_k


def pursue(target: Tensor, hessian: Tensor, count: int, rounds: int = 6) -> tuple[Tensor, Tensor]:
    """Choose ``count`` entries of T [N, K] one share at a time and fit their values.

    Each round ranks the free entries by the gain (RH)_ij² / H_jj that adding them alone would
    bring, where R is what is still missing, and refits all values by least squares.

    Returns:
        the mask [N, K] and the values [N, K], zero outside it.
    """
    mask = torch.zeros_like(target, dtype=torch.bool)
    values = torch.zeros_like(target)
    for turn in range(rounds):
        gain = ((target - values) @ hessian).square() / hessian.diagonal()
        wanted = count * (turn + 1) // rounds - int(mask.sum())
        mask |= top_k(gain.masked_fill(mask, -1.0), wanted)
        values = refit(target, hessian, mask)
    return mask, values
