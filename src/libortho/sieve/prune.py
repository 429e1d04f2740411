"""Removing weights: the baselines that a stream of the same count is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from libortho.sieve.refit import inverse_factor

_BLOCK = 128


def wanda(weight: Tensor, hessian: Tensor, share: float) -> Tensor:
    """Remove, row by row, the entries with the least |W_ij| ‖x_j‖ (Sun et al., arXiv 2306.11695).

    Args:
        weight: fp32 [N, K].
        hessian: E[x xᵀ], fp32 [K, K]; its diagonal holds ‖x_j‖².
        share: of each row that is removed.

    Returns:
        fp32 [N, K], the weight with zeros.
    """
    score = weight.abs() * hessian.diagonal().sqrt()
    count = round(weight.shape[1] * share)
    removed = torch.zeros_like(weight, dtype=torch.bool)
    removed.scatter_(1, score.argsort(dim=1, stable=True)[:, :count], True)
    return torch.where(removed, 0.0, weight)


def sparsegpt(weight: Tensor, hessian: Tensor, share: float) -> Tensor:
    """Remove entries of least OBS loss, the columns to come making up for it.

    Frantar & Alistarh, arXiv 2301.00774: with U the upper Cholesky factor of H⁻¹, an entry costs
    w²/U_jj², and removing it changes the rest of its row by −w/U_jj · U_j,j:.

    Args:
        weight: fp32 [N, K].
        hessian: fp32 [K, K], positive definite.
        share: of every block of 128 columns that is removed.

    Returns:
        fp32 [N, K], the weight with zeros and updated entries.
    """
    upper = inverse_factor(hessian)
    left = weight.clone()
    columns = weight.shape[1]
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        block, factor = left[:, start:end].clone(), upper[start:end, start:end]
        score = (block / factor.diagonal()).square()
        count = round(block.numel() * share)
        removed = torch.zeros(block.numel(), dtype=torch.bool)
        removed[score.flatten().argsort(stable=True)[:count]] = True
        removed = removed.view(block.shape)
        errors = torch.zeros_like(block)
        for i in range(end - start):
            kept = torch.where(removed[:, i], 0.0, block[:, i])
            errors[:, i] = (block[:, i] - kept) / factor[i, i]
            block[:, i:] -= torch.outer(errors[:, i], factor[i, i:])
            block[:, i] = kept
        left[:, start:end] = block
        left[:, end:] -= errors @ upper[start:end, end:]
    return left
