"""What a stream changes outside the converted linears: embeddings, norms, biases, the head.

The modules stay those of transformers. A hook adds the stream's part to a module's output, row by
row where α ≠ 0:

    y(w + α·d) = y(w) + α · (y(d) − y(0))

which holds for every module that is affine in its parameters. A parameter that several modules
share (tied embeddings) is changed in all of them.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from libortho import gate
from libortho.errors import ConfigError, UnsupportedLayer
from libortho.linear import OrthoLinear, add_gated
from libortho.streams.layers import DenseLayer

_ROOM = "ortho_outside"


def refused(model: nn.Module, names: Sequence[str]) -> list[str]:
    """In words, the parameters among ``names`` that no gate can act on.

    Args:
        model: a converted model, or a skeleton of the plain one.
    """
    found = []
    for name in names:
        owners = _owners(model, name)
        if not owners:
            found.append(f"{name}: no parameter of the model")
        found += [
            f"{name}: a parameter of {type(module).__name__}, which is no embedding, linear or norm"
            " of one input"
            for _, module, leaf in owners
            if not _gateable(module, leaf)
        ]
    return found


def attach_outside(
    model: nn.Module,
    stream: str,
    layers: Mapping[str, DenseLayer],
    attached: Sequence[gate.StreamInfo],
) -> None:
    """Let a stream act on parameters of stock modules.

    Args:
        layers: the difference of each parameter, by its name.
        attached: the model's list of attached streams.

    Raises:
        UnsupportedLayer: parameters that no gate can act on; all of them are named.
        ConfigError: parameters that are offloaded, or of another shape; all of them are named.
    """
    problems = refused(model, list(layers))
    if problems:
        raise UnsupportedLayer(
            f"stream {stream!r} changes what no gate can act on: " + "; ".join(problems)
        )
    for name, layer in layers.items():
        parameter = model.get_parameter(name)
        if parameter.is_meta:
            problems.append(f"{name} is offloaded; name the stream at load")
        if parameter.shape != layer.shape:
            problems.append(f"{name} is {layer.shape}, expected {tuple(parameter.shape)}")
    if problems:
        raise ConfigError(f"stream {stream!r} does not fit the model: " + "; ".join(problems))
    changed: dict[str, tuple[nn.Module, dict[str, nn.Parameter]]] = {}
    for name, layer in layers.items():
        owners = _owners(model, name)
        parameter = owners[0][1].get_parameter(owners[0][2])
        delta = layer.dense().to(parameter.device, parameter.dtype)
        shared = nn.Parameter(delta, requires_grad=False)
        for owner, module, leaf in owners:
            changed.setdefault(owner, (module, {}))[1][leaf] = shared
    for owner, (module, differences) in changed.items():
        room = _room(model)
        key = owner.replace(".", "/")
        if key not in room:
            room[key] = _Gated(module, attached)
        gated = room[key]
        assert isinstance(gated, _Gated)
        gated.add(stream, _part(module, differences))


def detach_outside(model: nn.Module, stream: str) -> None:
    """Drop a stream's part of stock modules, and the hooks that nothing needs any more."""
    room = model._modules.get(_ROOM)
    if not isinstance(room, nn.ModuleDict):
        return
    for key, gated in list(room.items()):
        assert isinstance(gated, _Gated)
        if gated.drop(stream):
            del room[key]
    if not room:
        del model._modules[_ROOM]


def has_outside(model: nn.Module) -> bool:
    """Whether an attached stream acts outside the converted linears."""
    return _ROOM in model._modules


class _Gated(nn.Module):
    """The streams' parts of one stock module, added to its output."""

    def __init__(self, module: nn.Module, attached: Sequence[gate.StreamInfo]) -> None:
        super().__init__()
        self.streams = nn.ModuleDict()
        self._attached = attached
        self._handle = module.register_forward_hook(self._act)

    def add(self, stream: str, part: nn.Module) -> None:
        self.streams[stream] = part

    def drop(self, stream: str) -> bool:
        """Whether nothing is left."""
        if stream in self.streams:
            del self.streams[stream]
        if not self.streams:
            self._handle.remove()
        return not self.streams

    def _act(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        names = list(self.streams)
        # Ids without a batch are of one sequence, or of positions that a batch shares.
        whole = output[None] if isinstance(module, nn.Embedding) and output.dim() == 2 else output
        alpha = gate.rows(names, self._attached, whole)
        x = args[0]
        x = x.flatten() if isinstance(module, nn.Embedding) else x.reshape(-1, x.shape[-1])
        y = output.reshape(-1, output.shape[-1])
        for position, name in enumerate(names):
            y = add_gated(y, x, self.streams[name], alpha[position])
        return y.reshape(output.shape)


class _Affine(nn.Module):
    """Adds x · weightᵀ + bias, either of which may be missing."""

    def __init__(self, weight: nn.Parameter | None, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            return nn.functional.linear(x, self.weight, self.bias)
        assert self.bias is not None
        return self.bias.expand(x.shape[0], -1)


class _Twin(nn.Module):
    """A copy of a module whose parameters are the differences: y(d) − y(0)."""

    def __init__(self, module: nn.Module, differences: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        zeros = {}
        if not isinstance(module, nn.Embedding):
            zeros = {
                leaf: nn.Parameter(torch.zeros_like(parameter), requires_grad=False)
                for leaf, parameter in module.named_parameters(recurse=False)
            }
        self.changed = _copy(module, {**zeros, **differences})
        # An embedding is linear in its weight; of norms some add 1 to theirs.
        self.empty = _copy(module, zeros) if zeros else None

    def forward(self, x: Tensor) -> Tensor:
        part: Tensor = self.changed(x)
        return part if self.empty is None else part - self.empty(x)


def _part(module: nn.Module, differences: Mapping[str, nn.Parameter]) -> nn.Module:
    if isinstance(module, nn.Linear | OrthoLinear):
        return _Affine(differences.get("weight"), differences.get("bias"))
    return _Twin(module, differences)


def _copy(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> nn.Module:
    """The module with other parameters, without hooks; nothing large is copied on the way."""
    memo: dict[int, Any] = {
        id(module._forward_hooks): OrderedDict(),
        id(module._forward_pre_hooks): OrderedDict(),
    }
    memo |= {id(module.get_parameter(leaf)): new for leaf, new in parameters.items()}
    return copy.deepcopy(module, memo)


def _gateable(module: nn.Module, leaf: str) -> bool:
    if isinstance(module, OrthoLinear):
        return leaf == "bias"
    if isinstance(module, nn.Embedding):
        # Others look up what they make of their input, or do more with it than scale it.
        scaled = type(module).__name__.endswith("ScaledWordEmbedding")
        return scaled or type(module).forward is nn.Embedding.forward
    if isinstance(module, nn.Linear):
        return True
    norm = type(module).__name__.endswith("Norm") and not any(module.children())
    return norm and len(inspect.signature(type(module).forward).parameters) == 2


def _owners(model: nn.Module, name: str) -> list[tuple[str, nn.Module, str]]:
    """Every (module name, module, attribute) that holds the parameter of that name."""
    wanted = dict(model.named_parameters(remove_duplicate=False)).get(name)
    return [
        (owner, module, leaf)
        for owner, module in model.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter is wanted and not owner.startswith(_ROOM)
    ]


def _room(model: nn.Module) -> nn.ModuleDict:
    room = model._modules.get(_ROOM)
    if not isinstance(room, nn.ModuleDict):
        room = nn.ModuleDict()
        model.add_module(_ROOM, room)
    return room
