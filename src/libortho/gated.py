"""A linear's product in compiled code, where nothing learns: an op that asks for α when it runs.

What an op returns belongs to the code that called it, which may write over it. α as the result of
an op (:func:`libortho.gate.rows`) therefore has to be made anew for every linear; asked for inside
the op that needs it, the linears of a forward share it, as they do outside compiled code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from libortho import gate, ops
from libortho.layout import BaseTiles, OrthoTiles
from libortho.ops.schema import SCHEMAS


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
    y: Tensor = torch.ops.libortho.gated_linear(x, *ops.stored(base, streams), ",".join(names))
    return y


# As for ``alpha_rows``: no recording of its kernels may keep the alpha that it was made under.
@torch.library.custom_op(
    "libortho::gated_linear",
    mutates_args=(),
    tags=(torch.Tag.cudagraph_unsafe,),
    schema=SCHEMAS[0].removeprefix("dual_linear").replace("Tensor alpha", "str names"),
)
def _gated_linear(x: Tensor, *operands: Any) -> Tensor:
    *stored, names = operands
    if x.is_cuda:
        ops.try_cuda()
    return _product(x, stored, gate.compiled_rows(names.split(","), x))


@_gated_linear.register_fake
def _(x: Tensor, *operands: Any) -> Tensor:
    *stored, names = operands
    shape = names.count(",") + 1, math.prod(x.shape[:-1])
    return _product(x, stored, x.new_empty(shape, dtype=torch.float32))


def _product(x: Tensor, stored: Sequence[Any], alpha: Tensor) -> Tensor:
    y: Tensor = torch.ops.libortho.dual_linear(x.reshape(-1, x.shape[-1]), *stored, alpha)
    return y
