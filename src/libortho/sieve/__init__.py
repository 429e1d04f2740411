"""Which weights leave the base: supports, scores and least-squares values, one matrix at a time.

Pure arithmetic on a target T [N, K] and the second moments H [K, K] of the layer's inputs; nothing
here knows of models or files. The error that all methods lower is tr((T − P) H (T − P)ᵀ), the
output error of a layer whose weights miss T by T − P.
"""

from __future__ import annotations

from libortho.sieve.admm import admm
from libortho.sieve.kfac import keep_curved
from libortho.sieve.prune import sparsegpt, wanda
from libortho.sieve.pursuit import pursue
from libortho.sieve.refit import damped, output_error, refit
from libortho.sieve.support import budget, contrast, impact, obs_impact, spqr_impact, top_k

__all__ = [
    "admm",
    "budget",
    "contrast",
    "damped",
    "impact",
    "keep_curved",
    "obs_impact",
    "output_error",
    "pursue",
    "refit",
    "sparsegpt",
    "spqr_impact",
    "top_k",
    "wanda",
]
