"""A linear's product in compiled code, where nothing learns: an op that asks for α when it runs.

What an op returns belongs to the code that called it, which may write over it. α as the result of
an op (:func:`libortho.gate.rows`) therefore has to be made anew for every linear; asked for inside
the op that needs it, the linears of a forward share it, as they do outside compiled code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from libortho import gate, ops
from libortho.layout import BaseTiles, OrthoTiles


def gated_linear(
    x: Tensor,
    base: BaseTiles,
    streams: Sequence[tuple[OrthoTiles, Tensor]],
    names: Sequence[str],
) -> Tensor:
    """:func:`libortho.ops.dual_linear` under the α of the forward that runs the compiled code.

    Args:
        x: [..., K]; sequences lead.
        base: the INT4 base [N, K].
        streams: positions and values of each, as ``dual_linear`` takes them.
        names: of the streams.

    Returns:
        y [M, N] with M the product of all dimensions of x but the last.

    Raises:
        AlphaError: when it runs outside a forward of the model.
    """
    y: Tensor = torch.ops.libortho.gated_linear(
        x,
        base.tiles,
        base.scales,
        base.shape[0],
        base.group_size,
        [tiles.slice_ptr for tiles, _ in streams],
        [tiles.columns for tiles, _ in streams],
        [values for _, values in streams],
        ",".join(names),
    )
    return y


# As for ``alpha_rows``: no recording of its kernels may keep the alpha that it was made under.
@torch.library.custom_op(
    "libortho::gated_linear", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _gated_linear(
    x: Tensor,
    tiles: Tensor,
    scales: Tensor,
    rows: int,
    group_size: int,
    slice_ptr: Sequence[Tensor],
    columns: Sequence[Tensor],
    values: Sequence[Tensor],
    names: str,
) -> Tensor:
    if x.is_cuda:
        ops.try_cuda()
    alpha = gate.compiled_rows(names.split(","), x)
    y: Tensor = torch.ops.libortho.dual_linear(
        x.reshape(-1, x.shape[-1]),
        tiles,
        scales,
        rows,
        group_size,
        slice_ptr,
        columns,
        values,
        alpha,
    )
    return y


@_gated_linear.register_fake
def _(
    x: Tensor,
    tiles: Tensor,
    scales: Tensor,
    rows: int,
    group_size: int,
    slice_ptr: Sequence[Tensor],
    columns: Sequence[Tensor],
    values: Sequence[Tensor],
    names: str,
) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    alpha = flat.new_empty((names.count(",") + 1, flat.shape[0]), dtype=torch.float32)
    y: Tensor = torch.ops.libortho.dual_linear(
        flat, tiles, scales, rows, group_size, slice_ptr, columns, values, alpha
    )
    return y
