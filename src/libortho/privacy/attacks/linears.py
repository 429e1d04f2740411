"""The linear layers of any causal language model, ours or plain, as an attacker reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from libortho.linear import OrthoLinear


def decoder_linears(model: Any) -> dict[str, nn.Module]:
    """Every linear layer but the output head, by name; GPT-2's Conv1D counts as one."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if module is not head
        and (isinstance(module, nn.Linear | OrthoLinear) or type(module).__name__ == "Conv1D")
    }


def dense_weight(module: nn.Module) -> Tensor:
    """The weight as fp32 [N, K], without streams; a copy."""
    weight = module.weight.detach().float()  # type: ignore[operator]
    return weight.t().clone() if type(module).__name__ == "Conv1D" else weight.clone()


@contextmanager
def changed_weights(model: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let every decoder linear act with ``change(weight)`` in place of its weight.

    Layers get ``x · (change(W) - W)`` on top, so that no stored byte is touched and streams act as
    before.

    Args:
        change: fp32 [N, K] to fp32 [N, K].
    """

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
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def adapters(model: Any, rank: int, scaling: float, seed: int) -> Iterator[list[nn.Parameter]]:
    """Put a fresh low-rank adapter on every decoder linear and yield what is to be trained.

    y += scaling · (x · aᵀ) · bᵀ with a [r, K] of variance 1/K and b [N, r] zero (LoRA, arXiv
    2106.09685). The model itself is left as it was.
    """
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
        yield parameters
    finally:
        for handle in handles:
            handle.remove()
