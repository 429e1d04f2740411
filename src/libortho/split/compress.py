"""Fitting a sparse stream to what the base lacks of a tuned model, one layer at a time.

Target per layer: T = W_tuned − base − Σ public streams. Support: contrast where the private data
is given, otherwise the entries of highest impact T_ij² H_jj. Values: least squares on H, the
second moments of the layer's inputs, private prompts among them where they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from libortho import sieve
from libortho.streams.base import BaseStream
from libortho.streams.layers import CsrLayer, csr_from_dense
from libortho.streams.ortho import OrthoStream


def targets(
    base: BaseStream, public: Sequence[OrthoStream], tuned: Callable[[str], Tensor]
) -> Callable[[str], Tensor]:
    """T of a layer by name, fp32 [N, K], read when it is asked for."""

    def target(name: str) -> Tensor:
        missing = tuned(name) - base.weight(name)
        for stream in public:
            if name in stream.manifest.layers:
                missing -= stream.layer(name).dense()
        return missing

    return target


def compress(
    target: Callable[[str], Tensor],
    hessians: Iterable[tuple[str, Tensor]],
    density: float,
    supports: Mapping[str, CsrLayer] | None,
) -> Iterator[tuple[str, CsrLayer]]:
    """Fit a sparse stream to T, one layer at a time, as the second moments arrive.

    Args:
        target: T by layer name.
        hessians: (layer name, H [K, K]).
        density: nnz / numel of each layer, where the support is chosen here.
        supports: per layer the support to use, values ignored; None chooses by impact.
    """
    for name, second_moment in hessians:
        hessian = sieve.damped(second_moment)
        wanted = target(name)
        if supports is None:
            score = sieve.impact(wanted, hessian)
            mask = sieve.top_k(score, round(score.numel() * density))
        else:
            mask = support_mask(supports[name])
        yield name, csr_from_dense(sieve.refit(wanted, hessian, mask), mask)


def support_mask(layer: CsrLayer) -> Tensor:
    """Boolean [N, K] of the entries that a CSR layer stores, whatever their values."""
    mask = layer.dense().bool()
    mask[layer.rows(), layer.indices.long()] = True
    return mask
