"""A converted model: the architecture of transformers with linears in streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)

from libortho import gate, ops
from libortho.errors import ConfigError, FormatError
from libortho.forwards import watch
from libortho.fuse import fuse_projections, is_fused
from libortho.layout import tile_base
from libortho.linear import BaseWeight, OrthoLinear, Part, part_of
from libortho.outside import attach_outside, detach_outside
from libortho.placement import dispatch, forget
from libortho.streams.base import BaseStream
from libortho.streams.layers import DenseLayer, Layer
from libortho.streams.ortho import STREAM_FOLDER, OrthoStream, check_name

WRAPPED = ".base_layer"
"""What PEFT adds to the name of a linear that it lays an adapter over."""


@dataclass
class Ortho:
    """What libortho keeps of a converted model, at ``model.ortho``.

    Attributes:
        stored: the base directory; None for a model that was made in memory.
        returned: names of what its forwards returned: a state, given back, has the same.
    """

    stored: BaseStream | None
    attached: list[gate.StreamInfo] = field(default_factory=list)
    forwards: int = 0
    under_way: set[int] = field(default_factory=set)
    returned: set[str] = field(default_factory=set)

    @property
    def base(self) -> BaseStream:
        """The base directory; ConfigError for a model that was made in memory."""
        if self.stored is None:
            raise ConfigError("this model was made in memory: it has no base directory")
        return self.stored


def load(
    path: str | Path,
    streams: Sequence[str | Path] = (),
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    device_map: str | Mapping[str, Any] | None = None,
    offload_folder: str | Path | None = None,
    fuse: bool = False,
) -> PreTrainedModel:
    """Load a base directory and attach streams. α starts at 0 for all of them: fail closed.

    Args:
        path: a directory written by ``libortho quantize``.
        streams: names of streams under ``path/ortho/``, or paths of stream directories elsewhere.
        dtype: of activations and of everything that is not quantised.
        device: where the whole model goes.
        device_map: where its modules go, in place of ``device``: ``auto``, ``balanced``,
            ``balanced_low_0``, ``sequential``, or accelerate's mapping of module to device,
            ``cpu`` or ``disk``.
        offload_folder: where modules mapped to ``disk`` are kept, in a folder of this model's own
            that goes when the model does.
        fuse: make projections that read one input one linear
            (:func:`libortho.fuse.fuse_projections`): for serving.

    Raises:
        ConfigError: a map that does not fit the model or its streams, or nothing to fuse.
        FormatError: the directory is no base, or lacks tensors that the model needs.
        PairMismatch: a stream belongs to another base.
        UnsupportedLayer: the architecture keeps a recurrent state inside its modules.
    """
    if isinstance(streams, str):
        raise ConfigError(f'streams: expected a list, found text; write ["{streams}"]')
    ops.backend()  # chosen now: compiled code could not
    base = BaseStream.open(path)
    config = AutoConfig.from_pretrained(base.path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    state = Ortho(base)
    for name in base.layers:
        plain = model.get_submodule(name)
        bias = base.parameter(f"{name}.bias").to(dtype) if plain.bias is not None else None
        weight = BaseWeight(tile_base(base.codes(name), base.scales(name), base.group_size))
        model.set_submodule(name, OrthoLinear(weight, bias, state.attached))
    _load_others(model, base, dtype)
    if (base.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(base.path)
    adopt(model, state)
    if device_map is None:
        model.to(device)
    for stream in streams:
        attach(model, stream)
    if fuse:
        fuse_projections(model)
    if device_map is not None:
        dispatch(model, device_map, offload_folder)
    return model


def adopt(model: PreTrainedModel, state: Ortho) -> None:
    """Put the gate before a model whose linears are converted, and freeze it."""
    model.ortho = state
    model.save_pretrained = _unsaved
    watch(model)
    model.eval().requires_grad_(False)


def _unsaved(*_: Any, **__: Any) -> None:
    raise ConfigError(
        "save_pretrained: transformers could not load what it would write of a converted model; "
        "copy the base directory, which holds the streams under ortho/, or save an adapter that "
        "PEFT laid over the model and give it to `libortho split`"
    )


def attach(model: PreTrainedModel, stream: str | Path | OrthoStream) -> OrthoStream:
    """Attach a stream to a loaded model: by name, by path, or opened already.

    At any time: in a forward that is under way the stream stays closed.

    Raises:
        ConfigError: a stream of that name is attached, or projections of the model are fused.
        PairMismatch: the stream belongs to another base.
        CorruptStream: its bytes are not those of its manifest, or break the rules of their kind.
    """
    opened = stream if isinstance(stream, OrthoStream) else _find(model, stream)
    base = ortho(model).base
    opened.check_pair(base.id, base.stream_shapes())
    opened.check_files()
    layers = {name: opened.layer(name) for name in opened.manifest.layers}
    attach_layers(model, gate.StreamInfo.of(opened), layers)
    return opened


def attach_layers(
    model: PreTrainedModel, info: gate.StreamInfo, layers: Mapping[str, Layer]
) -> None:
    """Attach a stream that is in memory: layer name → its part.

    A name that is no converted linear is a parameter of the base, and its part a ``DenseLayer``.

    Raises:
        ConfigError: a stream of that name is attached, a layer is no converted linear, or
            projections of the model are fused.
        UnsupportedLayer: parameters that no gate can act on; all of them are named.
    """
    check_name(info.name)
    state = ortho(model)
    attached = state.attached
    if info.name in [other.name for other in attached]:
        raise ConfigError(f"stream {info.name!r} is attached already; detach it first")
    if is_fused(model):
        raise ConfigError(
            f"stream {info.name!r}: projections of this model are fused; load it anew with every "
            "stream named, or without fuse=True"
        )
    outside = {
        name: layer
        for name, layer in layers.items()
        if name not in state.base.layers and isinstance(layer, DenseLayer)
    }
    targets = {name: linear(model, name) for name in layers if name not in outside}
    try:
        for name, target in targets.items():
            target.attach(info.name, layers[name])
        attach_outside(model, info.name, outside, attached)
    except BaseException:
        for target in targets.values():
            target.detach(info.name)
        raise
    attached.append(info)


def detach(model: PreTrainedModel, name: str) -> None:
    """Drop a stream: its bytes leave the process, and its offloaded files the disk.

    Raises:
        ConfigError: no stream of that name is attached, or a forward is under way, whose alpha
            holds to its end.
    """
    attached = ortho(model).attached
    if ortho(model).under_way:
        raise ConfigError(
            f"{len(ortho(model).under_way)} forward(s) are under way; detach stream {name!r} when "
            "they have ended"
        )
    if name not in [info.name for info in attached]:
        raise ConfigError(
            f"stream {name!r} is not attached; attached: "
            f"{', '.join(info.name for info in attached) or 'none'}"
        )
    for module in linears(model).values():
        module.detach(name)
    detach_outside(model, name)
    forget(model, name)
    attached[:] = [info for info in attached if info.name != name]


def ortho(model: nn.Module) -> Ortho:
    """The libortho state of a model made by :func:`load`; ConfigError for any other model."""
    state = getattr(model, "ortho", None)
    if not isinstance(state, Ortho):
        raise ConfigError(f"{type(model).__name__} was not made by libortho.load")
    return state


def linears(model: nn.Module) -> dict[str, OrthoLinear]:
    """Every converted linear by name."""
    return {
        name.removesuffix(WRAPPED): module
        for name, module in model.named_modules()
        if isinstance(module, OrthoLinear)
    }


def linear(model: nn.Module, name: str) -> OrthoLinear:
    """One converted linear by name."""
    module = model.get_submodule(name)
    module = getattr(module, WRAPPED.removeprefix("."), module)
    if not isinstance(module, OrthoLinear):
        raise ConfigError(f"layer {name} is {type(module).__name__}, not a converted linear")
    return module


def stream_parts(model: nn.Module, stream: str) -> dict[str, Part]:
    """The converted linears' parts of an attached stream, by layer name."""
    return {
        name: module.part(stream)
        for name, module in linears(model).items()
        if stream in module.streams
    }


def memory(model: nn.Module) -> dict[str, int]:
    """Bytes in memory: of the base under ``base``, and of every attached stream by its name.

    ``base`` is everything of the model that belongs to no stream. What several modules share
    counts once.
    """
    found = {"base": 0} | {info.name: 0 for info in ortho(model).attached}
    seen: set[int] = set()
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        _, inside, rest = f".{path}".rpartition(".streams.")
        found[rest.split(".")[0] if inside else "base"] += tensor.nbytes
    return found


def attached_bytes(stream: OrthoStream) -> int:
    """Bytes that a stream takes in memory once it is attached to a float32 model."""
    total = 0
    for name in stream.manifest.layers:
        layer = stream.layer(name)
        if isinstance(layer, DenseLayer):
            total += layer.nnz * torch.float32.itemsize
            continue
        part = part_of(layer)
        total += sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))
    return total


@dataclass
class CallRegion:
    """Calls of the native function inside a region against what the model's forwards imply."""

    name: str
    native_op_calls: int = 0
    expected_op_calls: int = 0
    dense_route_calls: int = 0
    forwards: int = 0
    under_way: set[int] = field(default_factory=set)


@contextmanager
def call_region(model: PreTrainedModel, name: str) -> Iterator[CallRegion]:
    """Count, without gradients, the native calls of a region.

    ``native_op_calls`` comes from the counter inside the native function;
    ``expected_op_calls`` = converted linears × forwards, counted at the model.
    """
    region = CallRegion(name)
    native, dense = ops.native_op_calls(), ops.dense_route_calls()
    forwards = ortho(model).forwards
    with torch.no_grad():
        yield region
    region.native_op_calls = ops.native_op_calls() - native
    region.dense_route_calls = ops.dense_route_calls() - dense
    region.forwards = ortho(model).forwards - forwards
    region.expected_op_calls = region.forwards * len(linears(model))


def _find(model: PreTrainedModel, stream: str | Path) -> OrthoStream:
    folder = ortho(model).base.path / STREAM_FOLDER
    by_name = folder / str(stream)
    if by_name.is_dir():
        return OrthoStream.open(by_name)
    if Path(stream).is_dir():
        return OrthoStream.open(stream)
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    raise FormatError(
        f"stream {str(stream)!r}: neither {by_name} nor that path is a stream; "
        f"streams of this base: {', '.join(there) or 'none'}"
    )


def _load_others(model: PreTrainedModel, base: BaseStream, dtype: torch.dtype) -> None:
    inside = tuple(f"{name}." for name in base.layers)
    wanted = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside)
    }
    state: dict[str, Tensor] = {}
    for name, placeholder in wanted.items():
        if name in base.naming:
            tensor = base.parameter(name)
            floating = tensor.is_floating_point()
            state[name] = tensor.to(placeholder.dtype if floating else tensor.dtype)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if missing:
        raise FormatError(f"{base.path}: tensors missing from the base: {', '.join(missing)}")
