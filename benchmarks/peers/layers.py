"""Random layers for benchmarks, and what they stand for in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from libortho.layout import BaseTiles, OrthoTiles, tile_csr, untile_base

GROUP = 128


def random_base(rows: int, columns: int, device: str = "cuda") -> BaseTiles:
    shape = (rows // 32, columns // 8, 128)
    tiles = torch.randint(0, 256, shape, device=device, dtype=torch.uint8)
    scales = torch.rand(rows // 32, columns // GROUP, 32, device=device) * 0.004 + 0.002
    return BaseTiles(tiles, scales.half(), (rows, columns), GROUP)


def random_csr(rows: int, columns: int, density: float, device: str = "cuda") -> Tensor:
    """Sparse CSR, bfloat16 values, int32 indices."""
    mask = torch.rand(rows, columns, device=device) < density
    csr = (mask * (torch.randn(rows, columns, device=device) * 0.02)).bfloat16().to_sparse_csr()
    indptr, indices = csr.crow_indices().int(), csr.col_indices().int()
    return torch.sparse_csr_tensor(indptr, indices, csr.values(), (rows, columns))


def tiled(csr: Tensor) -> tuple[OrthoTiles, Tensor]:
    """The matrix as the op takes it: tiles and their fp16 values."""
    rows, columns = csr.shape
    tiles = tile_csr(csr.crow_indices(), csr.col_indices(), (rows, columns))
    flat = torch.cat((csr.values().half(), csr.values().new_zeros(1).half()))
    values = flat[torch.where(tiles.order < 0, csr.values().numel(), tiles.order).long()]
    return tiles, values.contiguous()


def offset_codes(base: BaseTiles) -> Tensor:
    """Codes plus 8, int32 [N, K] in 0 .. 15."""
    return untile_base(base)[0].int() + 8


def dequantised(base: BaseTiles) -> Tensor:
    """float32 [N, K]."""
    codes, scales = untile_base(base)
    return codes.float() * scales.float().repeat_interleave(base.group_size, dim=1)
