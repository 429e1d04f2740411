"""White-box membership by the gradient: what was memorised pulls on the weights less.

The score is the Frobenius norm of the gradient of the completion's mean token NLL with respect to
the *effective* weights of all decoder linears, streams included: for a linear with inputs x_t and
output gradients g_t it is the norm of sum_t g_t x_t^T, whose square is
sum_{t,s} (g_t · g_s)(x_t · x_s). So no weight needs a gradient, and an INT4 base can be attacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from libortho.errors import NumericsError
from libortho.privacy.attacks.linears import decoder_linears
from libortho.privacy.attacks.subject import Half, Outcome, Subject, membership
from libortho.privacy.encode import Encoded, pad
from libortho.privacy.token_scores import rows_a_forward


def run(subject: Subject) -> Outcome:
    """Score: norm of the gradient."""

    def norms(half: Half, name: str) -> list[float]:
        found: list[float] = []
        # Activations are kept for the backward pass, and attention is squared in the sequence.
        size = rows_a_forward(subject.model, half.encoded, max(1, subject.budget.batch_size // 4))
        for start in range(0, len(half.encoded), size):
            found += gradient_norms(subject.model, half.encoded[start : start + size])
            subject.progress(f"gradient: {name}", len(found), len(half.encoded), {})
        return found

    members, controls = norms(subject.members, "members"), norms(subject.controls, "controls")
    return membership("gradient", members, controls, subject.seed)


def gradient_norms(model: Any, encoded: Sequence[Encoded]) -> list[float]:
    """Norm of each example's gradient, all in one batch.

    Raises:
        NumericsError: for a norm that is not finite.
    """
    batch = pad(encoded)
    device = next(model.parameters()).device
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    squares = torch.zeros(len(encoded), dtype=torch.float64, device=device)

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach().float()

        def collect(gradient: Tensor) -> None:
            g = gradient.float()
            pairs = torch.einsum("btn,bsn->bts", g, g) * torch.einsum("btk,bsk->bts", x, x)
            squares.add_(pairs.double().sum(dim=(1, 2)))

        output.register_hook(collect)

    def differentiable(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.detach().requires_grad_(True)

    hook: Callable[..., Any] = watch
    handles = [one.register_forward_hook(hook) for one in decoder_linears(model).values()]
    handles.append(model.get_input_embeddings().register_forward_hook(differentiable))
    try:
        with torch.enable_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            position = torch.arange(1, ids.shape[1], device=device)
            wanted = (position >= batch.prompt_lengths.to(device)[:, None]) & (mask[:, 1:] == 1)
            nll = nn.functional.cross_entropy(
                logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            ).view_as(wanted)
            (torch.where(wanted, nll, 0.0).sum(dim=1) / wanted.sum(dim=1)).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    norms = squares.clamp(min=0).sqrt()
    if not bool(torch.isfinite(norms).all()):
        raise NumericsError("gradient: norms are not finite")
    return norms.tolist()
