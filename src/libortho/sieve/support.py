"""Scores that rank the entries of a matrix, and the choice of the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from libortho.errors import ConfigError, NumericsError
from libortho.sieve.refit import inverse_factor

Budget = Literal["uniform", "global"]


def contrast(private: Tensor, public: Tensor, damping: float = 0.1) -> Tensor:
    """√F_private / (F_public + damping · mean F_public): large where only the private data pulls.

    Args:
        private: Σ over private examples of the squared gradient, [N, K].
        public: the same over public windows, [N, K].
    """
    return private.sqrt() / (public + damping * public.mean())


def impact(target: Tensor, hessian: Tensor) -> Tensor:
    """T_ij² H_jj: the output energy of an entry on its own."""
    return target.square() * hessian.diagonal()


def obs_impact(target: Tensor, hessian: Tensor) -> Tensor:
    """T_ij² / [H⁻¹]_jj, the Optimal Brain Surgeon loss (Hassibi & Stork 1993)."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return target.square() / inverse.diagonal()


def spqr_impact(target: Tensor, hessian: Tensor) -> Tensor:
    """T_ij² / L_jj², L Lᵀ = H⁻¹ reversed: SpQR's rule (Dettmers et al., arXiv 2306.03078).

    1 / L_jj² is the variance of input j that those after it, which GPTQ has left to make up for an
    error with, do not explain; OBS takes what all others do not explain.
    """
    return target.square() / inverse_factor(hessian).diagonal().square()


def top_k(score: Tensor, count: int) -> Tensor:
    """Boolean mask [N, K] of the ``count`` highest scores of one matrix (ties: lowest index).

    Raises:
        NumericsError: a score is NaN or infinite.
    """
    if not bool(torch.isfinite(score).all()):
        raise NumericsError("the scores that choose a support are not finite")
    order = torch.sort(score.flatten(), descending=True, stable=True).indices[:count]
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[order] = True
    return mask.reshape(score.shape)


def budget(
    sizes: Mapping[str, int], density: float, scores: Mapping[str, Tensor], kind: Budget
) -> dict[str, int]:
    """How many entries each matrix may have.

    ``uniform`` gives every matrix the same density. ``global`` lets all matrices compete by score:
    with an uncontrasted Fisher it puts everything into a few matrices and recalls nothing.

    Raises:
        ConfigError: the density is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise ConfigError(f"density {density}: expected a number in (0, 1]")
    if kind == "uniform":
        return {name: round(size * density) for name, size in sizes.items()}
    count = round(sum(sizes.values()) * density)
    merged = torch.cat([scores[name].flatten() for name in sizes])
    chosen = torch.sort(merged, descending=True, stable=True).indices[:count]
    edges = torch.tensor(list(sizes.values())).cumsum(0)
    owner = torch.bucketize(chosen.cpu(), edges, right=True)
    return dict(zip(sizes, torch.bincount(owner, minlength=len(sizes)).tolist(), strict=True))
