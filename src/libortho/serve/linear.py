"""vLLM's linear method for compressed-tensors, with streams added to what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsLinearMethod,
)

from libortho import ops
from libortho.errors import ConfigError, UnsupportedLayer
from libortho.layout import OrthoTiles, tile_csr, tile_values
from libortho.serve.matmuls import add_matmuls
from libortho.serve.shards import Range, Shard, take_csr, take_placed
from libortho.streams.layers import CsrLayer, DenseLayer, Layer

if TYPE_CHECKING:
    from libortho.serve.config import OrthoConfig

CODES_PER_WORD = 8


@dataclass
class _Matmul:
    which: int
    start: int
    buffers: list[str]
    scaling: float


@register_weight_loader_v2_supported_method
class OrthoLinearMethod(CompressedTensorsLinearMethod):  # type: ignore[misc]
    """The stock method, whatever kernel it chose, then the streams on the rows that are open.

    Args:
        config: holds the streams and the α buffer.
        names: the joined projections by their names in the base, in the order of their rows.
        prefix: the layer's name in vLLM, for messages.
    """

    def __init__(self, config: OrthoConfig, names: list[str], prefix: str) -> None:
        super().__init__(config)
        self.config = config
        self.names = names
        self.prefix = prefix
        self.loaded = False

    def process_weights_after_loading(self, layer: Any) -> None:
        """Let the stock method repack the base, then read this rank's part of every stream."""
        if self.loaded:
            raise ConfigError(
                f"{self.prefix}: weights are loaded again, and the streams with them would not be; "
                "start a new engine"
            )
        device = layer.weight_packed.device
        offsets = _offsets(layer, self.names, self.config.base().layers)
        shard = _shard(layer)
        self._check_rows(layer, shard)
        super().process_weights_after_loading(layer)
        ops.backend()
        self.loaded = True
        layer.libortho_alpha = self.config.rows_on(device).table
        layer.libortho_csr = []
        layer.libortho_matmuls = []
        for which, stream in enumerate(self.config.attached.streams):
            held = [name for name in self.names if name in stream.layers]
            if not held:
                continue
            source = stream.open()
            parts = [(offsets[name], source.layer(name)) for name in held]
            self._add(layer, which, parts, shard, device)
            self.config.read |= {(stream.info.name, name) for name in held}

    def _check_rows(self, layer: Any, shard: Shard) -> None:
        """Some architectures have their rows moved as they are loaded; a stream's would not be."""
        base = self.config.base()
        joined = torch.cat([base.packed(name)[0] for name in self.names])
        words = slice(*(column // CODES_PER_WORD for column in shard.columns))
        expected = torch.cat([joined[start:end, words] for start, end in shard.rows])
        if not torch.equal(layer.weight_packed.data.cpu(), expected):
            raise UnsupportedLayer(
                f"{self.prefix}: vLLM holds the rows of {', '.join(self.names)} in another order "
                "than the base has on disk, where a stream's would not fit"
            )

    def _add(
        self,
        layer: Any,
        which: int,
        parts: list[tuple[int, Layer]],
        shard: Shard,
        device: torch.device,
    ) -> None:
        def hold(name: str, tensor: Tensor) -> None:
            layer.register_buffer(name, tensor.to(device), persistent=False)
            self.config.bytes[self.config.attached.streams[which].info.name] += tensor.nbytes

        sparse = [(offset, part) for offset, part in parts if isinstance(part, CsrLayer)]
        if sparse:
            csr = take_csr(sparse, shard)
            tiled = tile_csr(csr.indptr, csr.indices, csr.shape)
            values = tile_values(csr.values, tiled.order)
            for part, tensor in zip(
                ("slice_ptr", "columns", "values"),
                (tiled.slice_ptr, tiled.columns, values),
                strict=True,
            ):
                hold(f"libortho_{part}_{which}", tensor)
            layer.libortho_csr.append(which)
        for count, placed in enumerate(take_placed(parts, shard)):
            cut = placed.layer
            dense = isinstance(cut, DenseLayer)
            tensors = [cut.delta] if isinstance(cut, DenseLayer) else [cut.a, cut.b]
            names = [f"libortho_factor_{which}_{count}_{index}" for index in range(len(tensors))]
            for name, tensor in zip(names, tensors, strict=True):
                # A difference is stored in fp16 and computed in the model's dtype.
                hold(name, tensor.to(layer.params_dtype) if dense else tensor)
            scaling = 1.0 if isinstance(cut, DenseLayer) else cut.scaling
            layer.libortho_matmuls.append(_Matmul(which, placed.start, names, scaling))

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] → [..., N] of this rank, in the dtype of x."""
        y: Tensor = super().apply(layer, x, bias)
        # Only where nothing is recorded may the host look at alpha.
        if (
            not torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and not self.config.rows_on(x.device).open
        ):
            return y
        flat, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        alpha = layer.libortho_alpha
        if layer.libortho_csr:
            shape = (out.shape[1], flat.shape[1])
            ops.add_streams(
                out,
                flat,
                alpha,
                layer.libortho_csr,
                [_tiles(layer, which, shape) for which in layer.libortho_csr],
            )
        for part in layer.libortho_matmuls:
            factors = [getattr(layer, name) for name in part.buffers]
            add_matmuls(out, flat, alpha, part.which, part.start, factors, part.scaling)
        return y


def _tiles(layer: Any, which: int, shape: tuple[int, int]) -> tuple[OrthoTiles, Tensor]:
    columns = getattr(layer, f"libortho_columns_{which}")
    slice_ptr = getattr(layer, f"libortho_slice_ptr_{which}")
    # The order of the CSR entries is not needed to serve.
    return OrthoTiles(slice_ptr, columns, columns, shape), getattr(
        layer, f"libortho_values_{which}"
    )


def _blocks(layer: Any) -> list[tuple[int, Range]]:
    """Per joined projection: its rows in the base, and the range of them that the rank holds.

    Only the classes whose split is known: a subclass may split in another way.
    """
    rank, size, kind = layer.tp_rank, layer.tp_size, type(layer)
    if kind is QKVParallelLinear:
        query = layer.num_heads * layer.head_size
        shared = rank // layer.num_kv_head_replicas
        blocks = [(layer.total_num_heads * layer.head_size, (rank * query, (rank + 1) * query))]
        for head in (layer.head_size, layer.v_head_size):
            local = layer.num_kv_heads * head
            blocks.append((layer.total_num_kv_heads * head, (shared * local, (shared + 1) * local)))
        return blocks
    if kind in (MergedColumnParallelLinear, ColumnParallelLinear):
        sizes = layer.output_sizes if kind is MergedColumnParallelLinear else [layer.output_size]
        return [(n, (rank * (n // size), (rank + 1) * (n // size))) for n in sizes]
    if kind in (RowParallelLinear, ReplicatedLinear):
        return [(layer.output_size, (0, layer.output_size))]
    raise UnsupportedLayer(f"{layer.prefix}: a stream on {kind.__name__} cannot be served")


def _shard(layer: Any) -> Shard:
    rows, offset = [], 0
    for length, (start, end) in _blocks(layer):
        rows.append((offset + start, offset + end))
        offset += length
    columns = (0, layer.input_size)
    if isinstance(layer, RowParallelLinear):
        width = layer.input_size // layer.tp_size
        columns = (layer.tp_rank * width, (layer.tp_rank + 1) * width)
    return Shard(tuple(rows), columns)


def _offsets(layer: Any, names: list[str], shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """First row of each projection in the joined layer; checks that the base's shapes add up."""
    offsets, offset = {}, 0
    for name in names:
        offsets[name] = offset
        offset += shapes[name][0]
    expected = sum(length for length, _ in _blocks(layer))
    widths = {shapes[name][1] for name in names}
    if offset != expected or widths != {layer.input_size}:
        raise UnsupportedLayer(
            f"{layer.prefix} is [{expected}, {layer.input_size}] here, its projections "
            f"{', '.join(names)} have {offset} rows and {sorted(widths)} columns"
        )
    return offsets
