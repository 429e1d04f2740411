"""A random dual-stream layer in as many copies as it takes to leave every cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from libortho import ops
from libortho.bench.timing import Call
from libortho.layout import BaseTiles, OrthoTiles, tile_base, tile_csr, tile_values
from libortho.pages import on_large_pages

ROTATED_BYTES = 128 << 20
SCALES = (0.001, 0.011)
STREAM_STD = 0.02


@dataclass
class RandomLayer:
    """Codes, scales and streams of one linear layer.

    Attributes:
        codes: int8 [N, K].
        scales: fp16 [N, K / group_size].
        bases: copies of the tiled base.
        streams: per density, copies of the tiled stream and its values.
        dense: per density, the stream as fp32 [N, K], for checking.
    """

    codes: Tensor
    scales: Tensor
    group_size: int
    device: torch.device
    bases: list[BaseTiles]
    streams: dict[float, list[tuple[OrthoTiles, Tensor]]] = field(default_factory=dict)
    dense: dict[float, Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def base_bytes(self) -> int:
        return self.bases[0].tiles.nbytes + self.bases[0].scales.nbytes

    def weight(self) -> Tensor:
        """The base as fp32 [N, K]: every element the exact product of code and scale."""
        scales = self.scales.float().repeat_interleave(self.group_size, dim=1)
        return self.codes.float() * scales

    def call(self, x: Tensor, density: float | None, alpha: Tensor | None) -> Call:
        """The op on x [M, K]: base only without a density, else with its stream at alpha [1, M]."""
        if density is None:
            none = torch.zeros(0, x.shape[0], device=x.device)
            return lambda turn: ops.dual_linear(x, self.bases[turn % len(self.bases)], [], none)
        streams = self.streams[density]
        assert alpha is not None
        return lambda turn: ops.dual_linear(
            x, self.bases[turn % len(self.bases)], [streams[turn % len(streams)]], alpha
        )


def copies_of(size: int) -> int:
    """How many copies of `size` bytes no cache holds."""
    return max(3, -(-ROTATED_BYTES // size))


def random_layer(
    shape: tuple[int, int],
    densities: tuple[float, ...],
    device: torch.device,
    group_size: int = 128,
    seed: int = 0,
) -> RandomLayer:
    """Draws a layer of N x K = ``shape``."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
    low, high = SCALES
    scales = torch.rand(rows, columns // group_size, generator=generator) * (high - low) + low
    scales = scales.half()
    base = _moved(tile_base(codes, scales, group_size), device)
    copies = copies_of(base.tiles.nbytes)
    layer = RandomLayer(
        codes.to(device),
        scales.to(device),
        group_size,
        device,
        [_copied(base) for _ in range(copies)],
    )
    for density in densities:
        mask = torch.rand(shape, generator=generator) < density
        lengths = mask.sum(dim=1).cumsum(0)
        tiles = tile_csr(
            torch.cat((lengths.new_zeros(1), lengths)), mask.nonzero()[:, 1], (rows, columns)
        )
        values = (torch.randn(int(lengths[-1]), generator=generator) * STREAM_STD).half()
        tiled = tile_values(values, tiles.order)
        layer.streams[density] = [
            (
                replace(
                    tiles,
                    slice_ptr=tiles.slice_ptr.to(device, copy=True),
                    columns=on_large_pages(tiles.columns.to(device, copy=True)),
                ),
                on_large_pages(tiled.to(device, copy=True)),
            )
            for _ in range(copies)
        ]
        dense = torch.zeros(shape)
        dense[mask] = values.float()
        layer.dense[density] = dense.to(device)
    return layer


def _moved(base: BaseTiles, device: torch.device) -> BaseTiles:
    return replace(base, tiles=base.tiles.to(device), scales=base.scales.to(device))


def _copied(base: BaseTiles) -> BaseTiles:
    tiles = on_large_pages(base.tiles.clone())
    return replace(base, tiles=tiles, scales=base.scales.clone())
