"""White-box membership by the gradient: what was memorised pulls on the weights less.

The score is the Frobenius norm of the gradient of the completion's mean token NLL with respect to
the *effective* weights of all decoder linears, streams included: for a linear with inputs x_t and
output gradients g_t it is the norm of sum_t g_t x_t^T, whose square is
sum_{t,s} (g_t · g_s)(x_t · x_s). So no weight needs a gradient, and an INT4 base can be attacked.
Stacked experts are added by their own gradient, one example at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from libortho.errors import NumericsError, UnsupportedLayer
from libortho.privacy.attacks.linears import (
    acting,
    check_reachable,
    decoder_linears,
    expert_stacks,
    fixed,
)
from libortho.privacy.attacks.subject import Half, Outcome, Subject, membership
from libortho.privacy.encode import Batch, Encoded, pad
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
    """Norm of each example's gradient, all in one batch unless there are stacked experts.

    Raises:
        NumericsError: for a norm that is not finite.
        UnsupportedLayer: the decoder has no weights that are known here, or a layer is called on
            inputs that cannot be told apart by example; it is named.
    """
    check_reachable(model)
    size = 1 if expert_stacks(model) else len(encoded)
    norms = torch.cat(
        [_norms(model, encoded[start : start + size]) for start in range(0, len(encoded), size)]
    )
    if not bool(torch.isfinite(norms).all()):
        raise NumericsError("gradient: norms are not finite")
    return norms.tolist()


def _norms(model: Any, encoded: Sequence[Encoded]) -> Tensor:
    batch = pad(encoded)
    pulls = _Pulls(*batch.input_ids.shape)
    leaves = {
        name: getattr(module, parameter).detach().clone().requires_grad_(True)
        for name, (module, parameter) in expert_stacks(model).items()
    }

    held = {name: partial(fixed, leaf) for name, leaf in leaves.items()}

    def differentiable(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.detach().requires_grad_(True)

    handles = [
        module.register_forward_hook(pulls.watch(name))
        for name, module in decoder_linears(model).items()
    ]
    handles.append(model.get_input_embeddings().register_forward_hook(differentiable))
    try:
        with torch.enable_grad(), acting(held, model):
            _mean_nll(model, batch).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    squares = pulls.squares()
    for leaf in leaves.values():
        if leaf.grad is not None:
            squares = squares + leaf.grad.double().square().sum()
    return squares.clamp(min=0).sqrt()


def _mean_nll(model: Any, batch: Batch) -> Tensor:
    """[B] mean NLL of each completion's tokens."""
    device = next(model.parameters()).device
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    position = torch.arange(1, ids.shape[1], device=device)
    wanted = (position >= batch.prompt_lengths.to(device)[:, None]) & (mask[:, 1:] == 1)
    nll = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view_as(wanted)
    return torch.where(wanted, nll, 0.0).sum(dim=1) / wanted.sum(dim=1)


class _Pulls:
    """Squared gradient norms of one batch, gathered while the backward pass goes by.

    A layer that is called several times in a forward has one gradient, the sum over its calls;
    their inputs and output gradients are kept until the end.
    """

    def __init__(self, examples: int, length: int) -> None:
        self._examples, self._length = examples, length
        self._calls: dict[str, int] = defaultdict(int)
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._sum: Tensor | float = 0.0

    def watch(self, name: str) -> Callable[..., None]:
        """A forward hook for the linear of that name."""

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._calls[name] += 1
            x = self._rows(name, inputs[0].detach())

            def collect(gradient: Tensor) -> None:
                g = self._rows(name, gradient)
                if self._calls[name] == 1:
                    self._sum = self._sum + _square(x, g)
                else:
                    self._kept[name].append((x, g))

            output.register_hook(collect)

        return hook

    def squares(self) -> Tensor:
        """[B] float64."""
        for pairs in self._kept.values():
            x, g = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
            self._sum = self._sum + _square(x, g)
        assert isinstance(self._sum, Tensor)
        return self._sum

    def _rows(self, name: str, values: Tensor) -> Tensor:
        """[B, rows of one example, width] of inputs that may have been flattened, as OPT's are."""
        whole = values.dim() > 2 and len(values) == self._examples
        flat = values.dim() == 2 and len(values) == self._examples * self._length
        if not (whole or flat or self._examples == 1):
            raise UnsupportedLayer(
                f"gradient: layer {name} is called on {tuple(values.shape)} for "
                f"{self._examples} examples of {self._length} tokens, and which row belongs to "
                "which cannot be told; name the other attacks, each with --attack"
            )
        return values.float().reshape(self._examples, -1, values.shape[-1])


def _square(x: Tensor, g: Tensor) -> Tensor:
    """[B] of ‖sum_t g_t x_tᵀ‖² for x [B, T, K] and g [B, T, N]."""
    pairs = torch.einsum("btn,bsn->bts", g, g) * torch.einsum("btk,bsk->bts", x, x)
    return pairs.double().sum(dim=(1, 2))
