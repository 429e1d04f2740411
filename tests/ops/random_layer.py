"""One random dual-stream layer, with its float64 result and the error that rounding may make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from libortho import ops
from libortho.layout import BaseTiles, OrthoTiles, tile_base, tile_csr, tile_values

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}


@dataclass
class Case:
    """A layer: what the op takes, and the same weights dense in float64."""

    base: BaseTiles
    streams: list[tuple[OrthoTiles, Tensor]]
    weight: Tensor
    orthos: list[Tensor]

    def __call__(self, x: Tensor, alpha: Tensor) -> Tensor:
        return ops.dual_linear(x, self.base, self.streams, alpha)

    def arguments(self, x: Tensor, alpha: Tensor) -> tuple[object, ...]:
        """The flat arguments of torch.ops.libortho.dual_linear."""
        return (
            x,
            self.base.tiles,
            self.base.scales,
            self.base.shape[0],
            self.base.group_size,
            [tiles.slice_ptr for tiles, _ in self.streams],
            [tiles.columns for tiles, _ in self.streams],
            [values for _, values in self.streams],
            alpha,
        )

    def exact(self, x: Tensor, alpha: Tensor) -> Tensor:
        """The layer in float64."""
        y = x.double() @ self.weight.T
        for ortho, weight in zip(self.orthos, alpha, strict=True):
            y = y + weight.double()[:, None] * (x.double() @ ortho.T)
        return y

    def bound(self, x: Tensor, alpha: Tensor) -> Tensor:
        """How far the op may be from ``exact``, element by element.

        With u the unit roundoff of the accumulator, a sum of products in any order, each operand
        exact, is off by at most gamma_n times the sum of magnitudes, gamma_n = n u / (1 - n u)
        (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), n the roundings that
        one term can meet: K products and sums and one scale a group for the base, the row's entries
        and two more (times alpha, plus y) for each stream. Then one rounding to the dtype of x.
        """
        columns = self.weight.shape[1]
        unit = UNIT_ROUNDOFF[torch.float64 if x.dtype == torch.float64 else torch.float32]
        steps = columns + columns // self.base.group_size + 2
        size = x.double().abs() @ self.weight.abs().T
        for ortho, weight in zip(self.orthos, alpha, strict=True):
            steps += int((ortho != 0).sum(dim=1).max()) + 2
            size = size + weight.double().abs()[:, None] * (x.double().abs() @ ortho.abs().T)
        summed = steps * unit / (1 - steps * unit) * size
        if x.dtype in (torch.float32, torch.float64):
            return summed
        smallest = torch.finfo(x.dtype).smallest_normal * UNIT_ROUNDOFF[x.dtype]
        return summed + UNIT_ROUNDOFF[x.dtype] * (self.exact(x, alpha).abs() + summed) + smallest


def make_case(
    rows: int,
    columns: int,
    group_size: int = 32,
    densities: tuple[float, ...] = (0.05,),
    scale_dtype: torch.dtype = torch.float16,
    value_dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, columns), generator=generator, dtype=torch.int8)
    scales = torch.rand(rows, columns // group_size, generator=generator) * 0.01 + 0.001
    scales = scales.to(scale_dtype)
    weight = codes.double() * scales.double().repeat_interleave(group_size, dim=1)
    streams, orthos = [], []
    for density in densities:
        mask = torch.rand(rows, columns, generator=generator) < density
        values = (torch.randn(int(mask.sum()), generator=generator) * 0.02).to(value_dtype)
        streams.append(stream_of(mask, values))
        dense = torch.zeros(rows, columns, dtype=torch.float64)
        dense[mask] = values.double()
        orthos.append(dense)
    return Case(tile_base(codes, scales, group_size), streams, weight, orthos)


def stream_of(mask: Tensor, values: Tensor) -> tuple[OrthoTiles, Tensor]:
    lengths = mask.sum(dim=1).cumsum(0)
    indptr = torch.cat((lengths.new_zeros(1), lengths)).to(torch.int32)
    indices = mask.nonzero()[:, 1].to(torch.int32)
    tiles = tile_csr(indptr, indices, (mask.shape[0], mask.shape[1]))
    return tiles, tile_values(values, tiles.order)
