"""Empirical Fisher information of the converted linears' weights: Σ over examples of g²."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from libortho import gate
from libortho.linear import OrthoLinear
from libortho.model import linear
from libortho.progress import Progress, silent

BUDGET_BYTES = 4 * 2**30


def groups(model: Any, names: Sequence[str]) -> list[list[str]]:
    """Split layers so that one pass's fp32 sums stay within ``BUDGET_BYTES``."""
    found: list[list[str]] = [[]]
    used = 0
    for name in names:
        module = linear(model, name)
        size = 4 * module.in_features * module.out_features
        if found[-1] and used + size > BUDGET_BYTES:
            found.append([])
            used = 0
        found[-1].append(name)
        used += size
    return found


def fisher(
    model: Any,
    names: Sequence[str],
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    stage: str = "fisher",
    total: int = 0,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Σ_e (∂ log p(e) / ∂W)² per layer, fp32 [N, K], one gradient per example.

    Args:
        model: a converted model; the caller sets α.
        names: layers wanted; the sums of all of them are held at once.
        batches: (input_ids [B, T], attention_mask [B, T], wanted [B, T]) where ``wanted`` marks
            the tokens whose log-probability counts; the first of a sequence never does.
        total: number of examples, for progress.
    """
    device = next(model.parameters()).device
    sums = {name: torch.zeros(linear(model, name).base.shape, device=device) for name in names}
    handles = [_watch(linear(model, name), name, sums) for name in names]
    # Nothing in the model asks for gradients; the embeddings' output must, for a graph to exist.
    handles.append(model.get_input_embeddings().register_forward_hook(_ask_gradient))
    done = 0
    try:
        for input_ids, attention_mask, wanted in batches:
            ids = input_ids.to(device)
            logits = model(input_ids=ids, attention_mask=attention_mask.to(device)).logits
            log_probs = torch.log_softmax(logits[:, :-1].float(), -1)
            picked = log_probs.gather(-1, ids[:, 1:, None])[..., 0]
            (picked * wanted[:, 1:].to(device)).sum().backward()
            done += len(ids)
            progress(stage, done, total, {})
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _watch(module: OrthoLinear, name: str, sums: dict[str, Tensor]) -> Any:
    def keep(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        state = gate.current()
        assert state is not None
        # Some models (OPT) run their linears on all tokens of all sequences in one row of rows.
        x = args[0].detach().reshape(state.sequences, -1, module.in_features)

        def accumulate(gradient: Tensor) -> None:
            gradients = gradient.reshape(state.sequences, -1, module.out_features)
            for g, rows in zip(gradients, x, strict=True):
                sums[name] += (g.float().t() @ rows.float()).square_()

        output.register_hook(accumulate)

    return module.register_forward_hook(keep)


def _ask_gradient(module: Any, args: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()
