"""Fitting a sparse stream to what the base lacks of a tuned model, one layer at a time.

Target per layer: T = W_tuned − base − Σ public streams. Support: given (by contrast), or chosen on
T and H. Values: least squares on H, the second moments of the layer's inputs, private prompts among
them where they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor

from libortho import sieve
from libortho.streams.base import BaseStream
from libortho.streams.layers import CsrLayer, csr_from_dense
from libortho.streams.ortho import OrthoStream

Rule = Literal["impact", "pursuit", "admm"]


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
    supports: Mapping[str, CsrLayer],
) -> Iterator[tuple[str, CsrLayer]]:
    """Fit values to T on given supports, one layer at a time, as the second moments arrive.

    Args:
        target: T by layer name.
        hessians: (layer name, H [K, K]).
        supports: per layer the support to use, values ignored.
    """
    for name, second_moment in hessians:
        mask = support_mask(supports[name])
        values = sieve.refit(target(name), sieve.damped(second_moment), mask)
        yield name, csr_from_dense(values, mask)


def choose(
    target: Callable[[str], Tensor],
    hessians: Iterable[tuple[str, Tensor]],
    density: float,
    rule: Rule,
) -> Iterator[tuple[str, CsrLayer]]:
    """Choose supports on T and H and fit the values, one layer at a time.

    Args:
        target: T by layer name.
        hessians: (layer name, H [K, K]).
        density: nnz / numel of each layer.
        rule: ``impact``, ``pursuit`` or ``admm``.
    """
    for name, second_moment in hessians:
        hessian = sieve.damped(second_moment)
        wanted = target(name)
        count = round(wanted.numel() * density)
        if rule == "impact":
            mask = sieve.top_k(sieve.impact(wanted, hessian), count)
            values = sieve.refit(wanted, hessian, mask)
        else:
            fit = sieve.pursue if rule == "pursuit" else sieve.admm
            mask, values = fit(wanted, hessian, count)
        yield name, csr_from_dense(values, mask)


def support_mask(layer: CsrLayer) -> Tensor:
    """Boolean [N, K] of the entries that a CSR layer stores, whatever their values."""
    mask = layer.dense().bool()
    mask[layer.rows(), layer.indices.long()] = True
    return mask
