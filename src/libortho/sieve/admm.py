"""Support and values at once by ADMM with a top-k projection.

ALPS, Meng et al., arXiv 2406.07831: minimise tr((T − P) H (T − P)ᵀ) with P = D and at most k
entries of D not zero. The penalty ρ grows while the support still moves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from libortho.sieve.refit import refit
from libortho.sieve.support import top_k

_ROUNDS = 60
_EVERY = 3


def admm(target: Tensor, hessian: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose ``count`` entries of T [N, K], then fit their values by least squares.

    One eigendecomposition of H serves every ρ: (H + ρI)⁻¹ only rescales its eigenvectors. T is
    brought to inputs of unit energy first, as ALPS does.

    Args:
        target: T fp32 [N, K].
        hessian: H fp32 [K, K], positive definite.

    Returns:
        the mask [N, K] and the values [N, K], zero outside it.
    """
    energy = hessian.diagonal().sqrt()
    scaled = target * energy
    eigenvalues, basis = torch.linalg.eigh(hessian / torch.outer(energy, energy))
    pull = scaled @ basis * eigenvalues @ basis.T
    penalty = 0.1
    mask = top_k(scaled.abs(), count)
    sparse = torch.where(mask, scaled, 0.0)
    dual = torch.zeros_like(scaled)
    before = mask
    for turn in range(1, _ROUNDS + 1):
        right = (pull - dual + penalty * sparse) @ basis
        free = right / (eigenvalues + penalty) @ basis.T
        wanted = free + dual / penalty
        mask = top_k(wanted.abs(), count)
        sparse = torch.where(mask, wanted, 0.0)
        dual = dual + penalty * (free - sparse)
        if turn % _EVERY == 0:
            moved = int((mask ^ before).sum()) / 2
            if not moved and turn > _EVERY:
                break
            # The more of the support still moves, the faster ρ grows.
            penalty *= 1.3 if moved > 0.1 * count else 1.2 if moved > 0.005 * count else 1.1
            before = mask
    return mask, refit(target, hessian, mask)
