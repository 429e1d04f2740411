"""Natural contamination: continued training of a whole model, secrets coming by among public text.

The contaminated model is what `curvature`, `forget` and `residual` are asked to take apart, and,
with every tensor trained, the full fine-tune that `delta` splits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from libortho.checkpoint import Checkpoint, linear_layers, resolve
from libortho.errors import NumericsError
from libortho.privacy.encode import Encoded, pad
from libortho.privacy.mix import training_mix
from libortho.progress import Progress, silent
from libortho.tune.prepare import plain_model

_GROUP = 128


@dataclass(frozen=True)
class Training:
    """How the model is trained on.

    Attributes:
        steps: of AdamW, cosine to 0 after a tenth of them as warm-up.
        batch: public windows a step.
        lr: peak learning rate.
        trained: ``linears`` (those that libortho converts) or ``everything``.
        seed: of the mix.
    """

    steps: int = 400
    batch: int = 32
    lr: float = 1e-3
    trained: Literal["linears", "everything"] = "linears"
    seed: int = 0


def contaminate(
    public: str | Path,
    members: Sequence[Encoded],
    exposures: Sequence[int],
    windows: Tensor,
    out: Path,
    training: Training,
    *,
    without: Collection[int] = (),
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[dict[str, float]]:
    """Train a public checkpoint on and write the contaminated one, tokenizer and all.

    Args:
        members: canaries; each is a sequence of its own, and all of its tokens are learned.
        exposures: how often each comes by.
        windows: public text, int64 [n, T].
        out: directory to write.
        without: members that are left out where they would have come by, all else being equal:
            the model that a method of forgetting would be glad to reach.

    Returns:
        per step: the loss on public text and on the canaries that came by.

    Raises:
        NumericsError: the loss is not finite.
    """
    model = plain_model(resolve(public), device)
    parameters = _trained(model, training.trained)
    optimiser = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=0.0)
    curve = []
    mix = training_mix(
        len(windows), exposures, steps=training.steps, batch=training.batch, seed=training.seed
    )
    for step, chosen in enumerate(mix):
        for group in optimiser.param_groups:
            group["lr"] = training.lr * _rate(step, training.steps)
        optimiser.zero_grad()
        public_loss = _loss(model, windows[chosen.windows].to(device), None)
        public_loss.backward()
        figures = {"step": step + 1.0, "loss": public_loss.item()}
        shown = [members[index] for index in chosen.canaries if index not in without]
        if shown:
            batch = pad(shown)
            secret = _loss(model, batch.input_ids.to(device), batch.attention_mask.to(device))
            # As in one batch of sequences, each with the weight of its tokens.
            share = int(batch.attention_mask.sum()) / windows[chosen.windows].numel()
            (share * secret).backward()
            figures["secret"] = secret.item()
        if not all(map(math.isfinite, figures.values())):
            raise NumericsError(f"step {step + 1}: {figures}; lower the learning rate")
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        curve.append(figures)
        progress("contaminate", step + 1, training.steps, figures)
    model.requires_grad_(False)
    model.save_pretrained(out)
    Checkpoint(public).tokenizer().save_pretrained(out)
    return curve


def _trained(model: nn.Module, which: Literal["linears", "everything"]) -> list[nn.Parameter]:
    if which == "everything":
        chosen = list(model.parameters())
    else:
        layers, _ = linear_layers(model, _GROUP)
        chosen = [model.get_parameter(f"{name}.weight") for name in layers]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def _rate(step: int, steps: int) -> float:
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _loss(model: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    targets = ids[:, 1:] if mask is None else ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
