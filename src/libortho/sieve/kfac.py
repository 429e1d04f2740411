"""Kronecker-factored curvature: what of a weight the population's loss depends on.

Merullo et al., arXiv 2510.24256. With A = E[a aᵀ] of a layer's inputs and G = E[g gᵀ] of the
gradients at its outputs, the curvature of the direction u_i v_jᵀ (eigenvectors of G and A) is
λ_i μ_j. The directions of highest curvature are what the model generalises with; recitation
lives in the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from libortho.errors import ConfigError, NumericsError

_HALVINGS = 200


def keep_curved(weight: Tensor, inputs: Tensor, gradients: Tensor, share: float) -> Tensor:
    """The part of a weight in the directions that hold ``share`` of the curvature.

    W_keep = U_G (K ∘ U_Gᵀ W U_A) U_Aᵀ, where K keeps the pairs of largest λ_i μ_j.

    Args:
        weight: fp32 [N, K].
        inputs: A fp32 [K, K].
        gradients: G fp32 [N, N].
        share: ρ in (0, 1].

    Returns:
        W_keep fp32 [N, K].

    Raises:
        NumericsError: a factor is not finite, or zero.
        ConfigError: ``share`` is out of range.
    """
    for name, factor in (("inputs", inputs), ("gradients", gradients)):
        if not bool(torch.isfinite(factor).all()) or not bool(factor.any()):
            raise NumericsError(f"the second moment of the {name} is zero or not finite")
    mu, basis_in = torch.linalg.eigh(inputs)
    lam, basis_out = torch.linalg.eigh(gradients)
    mu, lam = mu.double().clamp(min=0), lam.double().clamp(min=0)
    kept = torch.outer(lam, mu) >= threshold(lam, mu, share)
    rotated = basis_out.T @ weight @ basis_in
    edited: Tensor = basis_out @ torch.where(kept, rotated, 0.0) @ basis_in.T
    return edited


def threshold(lam: Tensor, mu: Tensor, share: float) -> float:
    """The largest τ such that the pairs with λ_i μ_j ≥ τ hold ``share`` of Σ λ_i μ_j.

    Found by bisection on log τ: for each λ_i a search in the sorted μ tells how many pairs pass,
    and a running sum of μ what they hold, so that no list of all pairs is ever sorted.

    Args:
        lam: float64 [N], not negative.
        mu: float64 [K], not negative.

    Raises:
        ConfigError: ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"the share of the curvature that is kept: {share}; expected (0, 1]")
    lam = lam[lam > 0]
    falling = torch.sort(mu[mu > 0], descending=True).values
    rising = falling.flip(0)
    held = torch.cat([falling.new_zeros(1), falling.cumsum(0)])
    # The sums run in different orders: the whole has to be reachable.
    wanted = share * float(lam.sum() * held[-1]) * (1 - 1e-12)

    def holds(log_tau: float) -> bool:
        need = torch.exp(log_tau - torch.log(lam))
        passing = len(rising) - torch.searchsorted(rising, need)
        return float((lam * held[passing]).sum()) >= wanted

    low = float(torch.log(lam.min()) + torch.log(falling[-1])) - 1e-6
    high = float(torch.log(lam.max()) + torch.log(falling[0])) + 1e-6
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if holds(middle):
            low = middle
        else:
            high = middle
    # Logarithm and exponential round: a pair that lies on the threshold must pass it.
    return float(torch.exp(torch.tensor(low, dtype=torch.float64))) * (1 - 1e-12)
