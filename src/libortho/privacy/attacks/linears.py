"""The matrices of any causal language model's decoder, ours or plain, as an attacker reaches them.

They are its linear layers, and the stacked matrices of experts, which no layer holds. Neither
routers, norms nor embeddings are among them, and no tower beside the decoder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from libortho.errors import UnsupportedLayer
from libortho.linear import OrthoLinear

Stack = tuple[nn.Module, str]
"""A module of experts and the name of a parameter [E, N, K] in it."""


def decoder_linears(model: Any) -> dict[str, nn.Module]:
    """Every linear layer of the decoder, by name; GPT-2's Conv1D counts as one."""
    return {
        name: module
        for name, module in _decoder_modules(model)
        if isinstance(module, nn.Linear | OrthoLinear) or type(module).__name__ == "Conv1D"
    }


def expert_stacks(model: Any) -> dict[str, Stack]:
    """Every stack of expert matrices, by the name of its parameter."""
    return {
        f"{name}.{parameter}": (module, parameter)
        for name, module in _decoder_modules(model)
        if not isinstance(module, _ConvNd)
        for parameter, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3
    }


def check_reachable(model: Any) -> None:
    """Refuse a model that an attack on weights would leave as it is.

    Raises:
        UnsupportedLayer: the decoder has neither linear layers nor stacked experts.
    """
    if not decoder_linears(model) and not expert_stacks(model):
        raise UnsupportedLayer(
            f"{type(model).__name__}: no linear layer and no stack of experts was found in its "
            "decoder, so attacks on weights would change nothing; name the other attacks, each "
            "with --attack"
        )


def dense_weight(module: nn.Module) -> Tensor:
    """The weight as fp32 [N, K], without streams; a copy."""
    weight = module.weight.detach().float()  # type: ignore[operator]
    return weight.t().clone() if type(module).__name__ == "Conv1D" else weight.clone()


@contextmanager
def acting(replacements: Mapping[str, Callable[[], Tensor]], model: Any) -> Iterator[None]:
    """Let stacks of experts compute with what a function gives at each forward.

    The parameters stay where they are: an attribute of the instance hides them, and goes again.

    Args:
        replacements: by the name of a stack: gives [E, N, K] in the parameter's dtype.
    """
    stacks = expert_stacks(model)
    grouped: dict[nn.Module, dict[str, Callable[[], Tensor]]] = defaultdict(dict)
    for name, make in replacements.items():
        module, parameter = stacks[name]
        grouped[module][parameter] = make

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for parameter, make in grouped[module].items():
            vars(module)[parameter] = make()

    handles = [module.register_forward_pre_hook(hook) for module in grouped]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, made in grouped.items():
            for parameter in made:
                vars(module).pop(parameter, None)


@contextmanager
def changed_weights(model: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let every matrix of the decoder act as ``change(weight)``, each expert's by itself.

    Layers get ``x · (change(W) - W)`` on top, so that no stored byte is touched and streams act as
    before.

    Args:
        change: fp32 [N, K] to fp32 [N, K].

    Raises:
        UnsupportedLayer: there is nothing to change.
    """
    check_reachable(model)

    def adds(delta: Tensor) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            added: Tensor = nn.functional.linear(inputs[0].float(), delta)
            return output + added.to(output.dtype)

        return hook

    handles = []
    try:
        for module in decoder_linears(model).values():
            weight = dense_weight(module)
            handles.append(module.register_forward_hook(adds(change(weight) - weight)))
        stacks = {}
        for name, (module, parameter) in expert_stacks(model).items():
            stored = getattr(module, parameter).detach()
            changed = torch.stack([change(one.float()).to(stored.dtype) for one in stored])
            stacks[name] = partial(fixed, changed)
        with acting(stacks, model):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def adapters(model: Any, rank: int, scaling: float, seed: int) -> Iterator[list[nn.Parameter]]:
    """Put a fresh low-rank adapter on every matrix of the decoder and yield what is to be trained.

    y += scaling · (x · aᵀ) · bᵀ with a [r, K] of variance 1/K and b [N, r] zero (LoRA, arXiv
    2106.09685), one pair for each expert. The model itself is left as it was.

    Raises:
        UnsupportedLayer: there is nothing to put one on.
    """
    check_reachable(model)
    generator = torch.Generator().manual_seed(seed)
    parameters: list[nn.Parameter] = []

    def adds(a: Tensor, b: Tensor) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            low = nn.functional.linear(inputs[0].float(), a)
            return output + (scaling * nn.functional.linear(low, b)).to(output.dtype)

        return hook

    device = next(model.parameters()).device
    handles = []
    try:
        for module in decoder_linears(model).values():
            n, k = dense_weight(module).shape
            a = torch.randn(rank, k, generator=generator) / k**0.5
            pair = [nn.Parameter(a.to(device)), nn.Parameter(torch.zeros(n, rank, device=device))]
            handles.append(module.register_forward_hook(adds(*pair)))
            parameters += pair
        stacks = {}
        for name, (module, parameter) in expert_stacks(model).items():
            stored = getattr(module, parameter).detach()
            experts, n, k = stored.shape
            a = torch.randn(experts, rank, k, generator=generator) / k**0.5
            low = nn.Parameter(a.to(device))
            high = nn.Parameter(torch.zeros(experts, n, rank, device=device))
            stacks[name] = partial(_adapted, stored, low, high, scaling)
            parameters += [low, high]
        with acting(stacks, model):
            yield parameters
    finally:
        for handle in handles:
            handle.remove()


def _decoder_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Modules of the decoder but the output head, under the names that the model has for them."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    inside = {id(module) for module in decoder.modules()}
    for name, module in model.named_modules():
        if id(module) in inside and module is not head:
            yield name, module


def fixed(weight: Tensor) -> Tensor:
    """What ``acting`` asks for where the weight is the same at every forward."""
    return weight


def _adapted(stored: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return stored + (scaling * torch.bmm(b, a)).to(stored.dtype)
