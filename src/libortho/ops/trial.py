"""A kernel tried against the reference before its first use, on the device that it is to run on.

Devices differ more than tests can see; what a kernel computes on one that nobody has tried must not
be believed unseen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from libortho.layout import tile_base, tile_csr, tile_values
from libortho.ops import reference

Kernel = Callable[..., Tensor]
Weights = tuple[Tensor, Tensor, int, int]
Streams = tuple[list[Tensor], list[Tensor], list[Tensor]]

# Few output rows under many inputs, and the other way round: kernels split the work differently.
_SHAPES = ((96, 2048), (2112, 512))
_BATCHES = (1, 3, 8, 16, 24, 33, 64)
_GROUP = 128
_DENSITY = 0.03
_UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_UNIT_SUM = 2.0**-24


def disagreement(kernel: Kernel, device: str | torch.device) -> str | None:
    """What ``kernel`` does otherwise than the reference, None if nothing.

    Random layers with one closed stream that holds NaN, and one that every other row opens. Outputs
    may be off by what rounding explains (Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.1); closed rows must have the bits of the base alone.

    Args:
        kernel: takes the arguments of ``libortho::dual_linear``, by position.
    """
    for rows, columns in _SHAPES:
        weights, streams = _layer(rows, columns, device)
        for dtype in _UNIT:
            for batch in _BATCHES:
                generator = torch.Generator().manual_seed(batch)
                x = torch.randn(batch, columns, generator=generator).to(device, dtype)
                alpha = torch.zeros(2, batch, device=device)
                alpha[1, ::2] = 1
                found = _compare(kernel, x, weights, streams, alpha)
                if found is not None:
                    return f"{rows} x {columns}, {batch} rows of {dtype}: {found}"
    return None


def _compare(
    kernel: Kernel,
    x: Tensor,
    weights: Weights,
    streams: Streams,
    alpha: Tensor,
) -> str | None:
    alone = kernel(x, *weights, [], [], [], alpha[:0])
    closed = kernel(x, *weights, *streams, torch.zeros_like(alpha))
    y = kernel(x, *weights, *streams, alpha)
    if not torch.equal(closed, alone) or not torch.equal(y[1::2], alone[1::2]):
        return "rows whose streams are closed differ from the base alone"
    wide = x.double()
    slice_ptr, places, values = streams
    exact = reference.dual_linear(wide, *weights, slice_ptr, places, values, alpha)
    # Every weight and entry is at most 0.16: codes of 8 and scales of 1/64, entries of 1/32.
    terms = 2 * x.shape[1]
    summed = terms * _UNIT_SUM / (1 - terms * _UNIT_SUM) * 0.16 * wide.abs().sum(1, keepdim=True)
    unit = _UNIT[x.dtype]
    smallest = torch.finfo(x.dtype).smallest_normal * unit
    bound = summed + unit * (exact.abs() + summed) + smallest
    excess = float(((y.double() - exact).abs() / bound).nan_to_num(nan=torch.inf).max())
    return None if excess <= 1 else f"off by {excess:.3g} times what rounding explains"


def _layer(rows: int, columns: int, device: str | torch.device) -> tuple[Weights, Streams]:
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(-8, 8, (rows, columns), generator=generator, dtype=torch.int8)
    scales = (torch.rand(rows, columns // _GROUP, generator=generator) / 64).half()
    base = tile_base(codes, scales, _GROUP)
    slice_ptr: list[Tensor] = []
    places: list[Tensor] = []
    values: list[Tensor] = []
    for entry in (float("nan"), 1 / 32):
        mask = torch.rand(rows, columns, generator=generator) < _DENSITY
        indptr = torch.cat((torch.zeros(1, dtype=torch.long), mask.sum(dim=1).cumsum(0)))
        tiles = tile_csr(indptr.int(), mask.nonzero()[:, 1].int(), (rows, columns))
        signs = torch.randint(0, 2, (int(mask.sum()),), generator=generator) * 2 - 1
        slice_ptr.append(tiles.slice_ptr.to(device))
        places.append(tiles.columns.to(device))
        values.append(tile_values((signs * entry).half(), tiles.order).to(device))
    weights = (base.tiles.to(device), base.scales.to(device), rows, _GROUP)
    return weights, (slice_ptr, places, values)
