"""``residual``: base = Q(W), ortho = the top residuals by Optimal Brain Surgeon impact.

The seed of the idea and its honest negative result: rounding does not remove what training put
in, so the base still recites. Guarantee: measured, and expected to leak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from libortho import sieve
from libortho.streams.base import BaseStream
from libortho.streams.ortho import CsrLayer, csr_from_dense


def top_residuals(
    weight: Callable[[str], Tensor],
    base: BaseStream,
    hessians: Iterable[tuple[str, Tensor]],
    density: float,
) -> Iterator[tuple[str, CsrLayer]]:
    """Per layer the residuals W − Q(W) of highest (W − Q)²_ij / [H⁻¹]_jj.

    Args:
        weight: the checkpoint's weight by layer name, fp32 [N, K].
        base: its own INT4 base.
        hessians: (layer name, H [K, K]).
        density: nnz / numel of each layer.
    """
    for name, second_moment in hessians:
        missed = weight(name) - base.weight(name)
        score = sieve.obs_impact(missed, sieve.damped(second_moment))
        mask = sieve.top_k(score, round(score.numel() * density))
        yield name, csr_from_dense(missed, mask)
