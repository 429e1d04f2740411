"""A linear layer in streams: y = x · baseᵀ + Σ_s α_s · (x · ortho_sᵀ) + bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from libortho import gate, ops
from libortho.errors import ConfigError
from libortho.gated import gated_linear
from libortho.layout import BaseTiles, OrthoTiles, tile_csr, tile_values, untile_base
from libortho.pages import on_large_pages
from libortho.streams.layers import CsrLayer, DenseLayer, Layer, LowRankLayer


class _FixedDtype(nn.Module):
    """Holds tensors whose number format is part of the format: ``.to(dtype)`` moves them only."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _FixedDtype:
        super()._apply(  # type: ignore[no-untyped-call]
            lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse
        )
        return self


class BaseWeight(_FixedDtype):
    """The INT4 base of one layer, tiled for the kernels.

    Args:
        tiled: of :func:`libortho.layout.tile_base`.
    """

    tiles: Tensor
    scales: Tensor

    def __init__(self, tiled: BaseTiles) -> None:
        super().__init__()
        self.shape = tiled.shape
        self.group_size = tiled.group_size
        self.register_buffer("tiles", tiled.tiles)
        self.register_buffer("scales", tiled.scales)

    def tiled(self) -> BaseTiles:
        return BaseTiles(self.tiles, self.scales, self.shape, self.group_size)

    def dequantised(self) -> Tensor:
        """The weights as fp32 [N, K]."""
        codes, scales = untile_base(self.tiled())
        return codes * scales.float().repeat_interleave(self.group_size, dim=1)


class CsrStream(_FixedDtype):
    """A sparse stream of one layer: stored as CSR, tiled at load.

    ``trainable()`` turns the values into a fp32 parameter in CSR order; the support never moves.
    """

    indptr: Tensor
    indices: Tensor
    slice_ptr: Tensor
    columns: Tensor
    order: Tensor
    values: Tensor

    def __init__(self, layer: CsrLayer) -> None:
        super().__init__()
        tiled = tile_csr(layer.indptr, layer.indices, layer.shape)
        self.shape = layer.shape
        self.register_buffer("indptr", layer.indptr)
        self.register_buffer("indices", layer.indices)
        self.register_buffer("slice_ptr", tiled.slice_ptr)
        self.register_buffer("columns", on_large_pages(tiled.columns))
        self.register_buffer("order", tiled.order)
        self.register_buffer("values", on_large_pages(tile_values(layer.values, tiled.order)))
        self._training_values: nn.Parameter | None = None

    def tiled(self) -> OrthoTiles:
        return OrthoTiles(self.slice_ptr, self.columns, self.order, self.shape)

    def tile_values(self) -> Tensor:
        """Values in tile order, [S, 16]: fp16 when serving, fp32 while they are trained."""
        if self._training_values is not None:
            return tile_values(self._training_values, self.order)
        return self.values

    def csr_values(self) -> Tensor:
        """Values in CSR order, [nnz]."""
        if self._training_values is not None:
            return self._training_values.detach()
        kept = self.order >= 0
        flat = torch.empty(self.indices.numel(), dtype=self.values.dtype, device=kept.device)
        flat[self.order[kept].long()] = self.values[kept]
        return flat

    def trainable(self) -> list[nn.Parameter]:
        """Give the values a gradient, in fp32; returns the one parameter, [nnz]."""
        if self._training_values is None:
            self._training_values = nn.Parameter(self.csr_values().float())
        return [self._training_values]

    def freeze(self) -> None:
        """Round the trained values to fp16, as they are stored."""
        if self._training_values is not None:
            trained = self._training_values.detach()
            self._training_values = None
            self.values = on_large_pages(tile_values(trained, self.order).to(torch.float16))

    def layer(self) -> CsrLayer:
        """The stream of this layer as it is written to disk, on the CPU."""
        return CsrLayer(
            self.indptr.cpu(),
            self.indices.cpu(),
            self.csr_values().to("cpu", torch.float16),
            self.shape,
        )


class LowRankStream(_FixedDtype):
    """An adapter kept as factors: adds ``scaling · (x · aᵀ) · bᵀ``, a [r, K], b [N, r]."""

    def __init__(self, layer: LowRankLayer) -> None:
        super().__init__()
        self.shape = layer.shape
        self.scaling = layer.scaling
        self.a = nn.Parameter(layer.a, requires_grad=False)
        self.b = nn.Parameter(layer.b, requires_grad=False)

    def trainable(self) -> list[nn.Parameter]:
        """Give both factors a gradient; returns them."""
        self.requires_grad_(True)
        return [self.a, self.b]

    def freeze(self) -> None:
        """Take the gradients away again."""
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.nn.functional.linear(x.to(self.a.dtype), self.a)
        return torch.nn.functional.linear(low, self.b) * self.scaling

    def layer(self) -> LowRankLayer:
        """The factors as they are written to disk, on the CPU."""
        return LowRankLayer(self.a.detach().cpu(), self.b.detach().cpu(), self.scaling)


class DenseStream(_FixedDtype):
    """A difference kept whole: adds x · deltaᵀ, delta fp16 [N, K]."""

    def __init__(self, layer: DenseLayer) -> None:
        super().__init__()
        self.shape = layer.shape
        self.delta = nn.Parameter(layer.delta.to(torch.float16), requires_grad=False)

    def trainable(self) -> list[nn.Parameter]:
        """Give the difference a gradient, in fp32; returns the one parameter, [N, K]."""
        self.delta = nn.Parameter(self.delta.detach().float())
        return [self.delta]

    def freeze(self) -> None:
        """Round the trained difference to fp16, as it is stored."""
        self.delta = nn.Parameter(self.delta.detach().to(torch.float16), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.delta.to(x.dtype))

    def layer(self) -> DenseLayer:
        """The difference as it is written to disk, on the CPU."""
        return DenseLayer(self.delta.detach().to("cpu", torch.float16))


Part = CsrStream | LowRankStream | DenseStream
"""One layer's part of a stream."""


class OrthoLinear(nn.Module):
    """Drop-in for ``nn.Linear``: an INT4 base, any number of ortho streams and a gate.

    Args:
        base: the quantised weight.
        bias: [N] or None; public, part of the base.
        attached: the model's list of attached streams, shared by all its linears.
    """

    def __init__(
        self, base: BaseWeight, bias: Tensor | None, attached: Sequence[gate.StreamInfo]
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = base.shape
        self.base = base
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.streams = nn.ModuleDict()
        self._attached = attached

    def attach(self, name: str, layer: Layer) -> None:
        """Add this layer's part of a stream.

        Raises:
            ConfigError: a stream of that name is attached already, or the shapes differ.
        """
        if name in self.streams:
            raise ConfigError(f"stream {name!r} is attached already; detach it first")
        if tuple(layer.shape) != self.base.shape:
            raise ConfigError(
                f"stream {name!r} is {tuple(layer.shape)} where the weight is {self.base.shape}"
            )
        if self.base.tiles.is_meta:
            raise ConfigError(
                f"stream {name!r}: the base of this layer is offloaded; name the stream at load"
            )
        self.streams[name] = part_of(layer).to(self.base.tiles.device)

    def detach(self, name: str) -> None:
        """Drop this layer's part of a stream, if it has one."""
        if name in self.streams:
            del self.streams[name]

    def part(self, name: str) -> Part:
        """This layer's part of a stream."""
        part = self.streams[name]
        assert isinstance(part, Part)
        return part

    @property
    def weight(self) -> Tensor:
        """The base alone, dequantised to fp32 [N, K]: what code that inspects weights may see."""
        return self.base.dequantised()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] fp32, bf16 or fp16 → [..., N] of the same dtype."""
        names = list(self.streams)
        sparse, matmuls = [], []
        for position, name in enumerate(names):
            stream = self.streams[name]
            if isinstance(stream, CsrStream):
                sparse.append((position, stream))
            else:
                matmuls.append((position, stream))
        streams = [(stream.tiled(), stream.tile_values()) for _, stream in sparse]
        inference = torch.compiler.is_compiling() and not torch.is_grad_enabled()
        if inference and sparse and not matmuls and x.numel():
            y = gated_linear(x, self.base.tiled(), streams, names)
        else:
            alpha = gate.rows(names, self._attached, x)
            flat = x.reshape(-1, self.in_features)
            chosen = alpha if not matmuls else alpha[[position for position, _ in sparse]]
            y = ops.dual_linear(flat, self.base.tiled(), streams, chosen)
            for position, stream in matmuls:
                y = add_gated(y, flat, stream, alpha[position])
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        streams = ", ".join(self.streams) or "none"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"group_size={self.base.group_size}, bias={self.bias is not None}, "
            f"streams={streams}, backend={ops.backend().name}"
        )


def part_of(layer: Layer) -> Part:
    """One layer of a stream, ready to act."""
    if isinstance(layer, CsrLayer):
        return CsrStream(layer)
    return LowRankStream(layer) if isinstance(layer, LowRankLayer) else DenseStream(layer)


def add_gated(y: Tensor, x: Tensor, stream: Callable[[Tensor], Tensor], alpha: Tensor) -> Tensor:
    """Add α · stream(x) to the rows whose α is not 0; other rows keep their bits.

    Args:
        y: [M, N].
        x: [M, ...], whose closed rows are not shown to ``stream`` on a CPU.
        alpha: fp32 [M].
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        open_rows = alpha.nonzero()[:, 0]
        if open_rows.numel() == 0:
            return y
        # All rows, the closed ones as zeros: a product of fewer rows may sum in another order, and
        # a row's bits would then depend on the alpha of others.
        opened = torch.zeros_like(x).index_copy(0, open_rows, x[open_rows])
        part = (stream(opened) * alpha[:, None])[open_rows]
        return y.index_add(0, open_rows, part.to(y.dtype))
    opened = alpha[:, None] != 0
    if x.is_floating_point():
        # Backwards, too: what a stream holds would reach a closed row's gradient as 0 times it.
        x = torch.where(opened, x, 0)
    part = stream(x) * alpha[:, None]
    return torch.where(opened, y + part.to(y.dtype), y)
