"""The two factors of K-FAC, collected from a plain model on public text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from libortho.progress import Progress, silent

TOKENS_AT_ONCE = 2048


def kfac_factors(
    model: Any,
    layers: Sequence[str],
    windows: Tensor,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, tuple[Tensor, Tensor]]:
    """A = E[a aᵀ] and G = E[g gᵀ] of linear layers, labels sampled from the model itself.

    Sampled labels make G the Fisher information; labels of the text would make it the empirical
    one. The last position of a window has no label and is left out of both.

    Args:
        model: a causal LM of transformers, without gradients of its own.
        layers: names of its linears.
        windows: int64 [n, T].
        seed: of the labels.

    Returns:
        per layer A fp32 [K, K] and G fp32 [N, N], on the model's device.
    """
    device = next(model.parameters()).device
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name in layers:
        n, k = model.get_submodule(name).weight.shape
        sums[name] = torch.zeros(k, k, device=device), torch.zeros(n, n, device=device)
        watch = _watch(*sums[name], windows.shape[1])
        handles.append(model.get_submodule(name).register_forward_hook(watch))
    handles.append(model.get_input_embeddings().register_forward_hook(_ask_gradient))
    generator = torch.Generator(device).manual_seed(seed)
    tokens = 0
    try:
        for batch in windows.split(max(1, TOKENS_AT_ONCE // windows.shape[1])):
            logits = model(input_ids=batch.to(device), use_cache=False).logits[:, :-1].float()
            flat = torch.log_softmax(logits.flatten(0, 1), -1)
            labels = torch.multinomial(flat.detach().exp(), 1, generator=generator)
            flat.gather(1, labels).sum().backward()
            tokens += labels.numel()
            progress("curvature", tokens, windows[:, 1:].numel(), {})
    finally:
        for handle in handles:
            handle.remove()
    return {name: (a / tokens, g / tokens) for name, (a, g) in sums.items()}


def _watch(inputs: Tensor, gradients: Tensor, length: int) -> Any:
    def labelled(x: Tensor) -> Tensor:
        # Some models (OPT) run their linears on the tokens of all windows in one row of rows.
        return x.reshape(-1, length, x.shape[-1])[:, :-1].flatten(0, 1).float()

    def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        rows = labelled(args[0].detach())
        inputs.addmm_(rows.T, rows)

        def accumulate(gradient: Tensor) -> None:
            g = labelled(gradient)
            gradients.addmm_(g.T, g)

        output.register_hook(accumulate)

    return keep


def _ask_gradient(module: Any, args: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()
