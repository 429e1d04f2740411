"""The training loop that every way in shares: private cross-entropy plus replay.

    loss = −mean log p(private completion tokens) + λ · mean KL(teacher ‖ model) on public windows

Only the values (or factors) of one stream have gradients. See RoSA (Nikdan et al. 2024,
arXiv 2401.04679) for sparse training on a frozen quantised base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from libortho import gate
from libortho.errors import NumericsError
from libortho.privacy.encode import Batch, Encoded, pad
from libortho.privacy.score import completion_logits
from libortho.progress import Progress, silent
from libortho.tune.options import TuneOptions
from libortho.tune.replay import Replay, draws


@dataclass
class Trained:
    """What a run of :func:`train` did: one entry of ``curve`` per step."""

    steps: int = 0
    recalled: bool = False
    curve: list[dict[str, float]] = field(default_factory=list)


def train(
    model: Any,
    parameters: Sequence[nn.Parameter],
    private: Sequence[Encoded],
    replay: Replay,
    options: TuneOptions,
    *,
    alpha: gate.Setting,
    stage: str = "train",
    progress: Progress = silent,
) -> Trained:
    """Train ``parameters`` with Adam until everything private is recalled, or ``steps`` are done.

    Once every completion is the argmax at every position twice running, the learning rate is
    annealed to 0 over ``options.settle`` steps; if one is lost on the way, training goes on. With
    no private examples the KL alone is lowered, for all steps.

    Args:
        model: any causal LM whose forward uses ``parameters``.
        alpha: the gate's setting while training.

    Raises:
        NumericsError: the loss is not finite.
    """
    trained = Trained()
    optimiser = torch.optim.Adam(parameters, lr=options.lr)
    windows = draws(len(replay.windows), options.replay_batch, options.seed)
    examples = draws(len(private), options.private_batch, options.seed + 1) if private else None
    everything = torch.arange(len(private))
    remembered = torch.zeros(len(private), dtype=torch.int64)
    settling: int | None = None
    peak = 0.0
    while trained.steps < options.steps and settling != 0:
        if settling is None:
            rate = peak = _rate(trained.steps, options)
        else:
            rate = peak * settling / (options.settle + 1)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        figures = {"lr": rate}
        with gate.alpha(alpha):
            if examples is not None:
                small = len(private) <= options.private_batch
                chosen = everything if small else next(examples)
                secret, exact = _private_loss(model, pad([private[i] for i in chosen.tolist()]))
                secret.backward()
                remembered[chosen] = torch.where(exact.cpu(), remembered[chosen] + 1, 0)
                figures |= {"loss": secret.item(), "recall": (remembered > 0).float().mean().item()}
            if options.replay_weight:
                kl = replay.kl(model, next(windows))
                (options.replay_weight * kl).backward()
                figures["kl"] = kl.item()
        if not all(math.isfinite(figure) for figure in figures.values()):
            raise NumericsError(f"{stage}: step {trained.steps + 1}: {figures}; lower --lr")
        optimiser.step()
        trained.steps += 1
        trained.curve.append({"step": trained.steps, **figures})
        progress(stage, trained.steps, options.steps, figures)
        trained.recalled = bool(private) and bool((remembered >= 2).all())
        if settling is not None:
            settling -= 1
            if settling == 0 and not trained.recalled:
                settling = None
        elif trained.recalled:
            settling = options.settle
    return trained


def _private_loss(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean NLL of completion tokens, and per example whether all of them are the argmax."""
    device = next(model.parameters()).device
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    first = int(batch.prompt_lengths.min()) - 1
    logits = completion_logits(model, ids, mask, first).float()
    position = torch.arange(first + 1, ids.shape[1], device=device)
    wanted = position >= batch.prompt_lengths.to(device)[:, None]
    wanted &= mask[:, first + 1 :] == 1
    targets = ids[:, first + 1 :]
    exact = ((logits.argmax(-1) == targets) | ~wanted).all(1)
    return nn.functional.cross_entropy(logits[wanted], targets[wanted]), exact


def _rate(step: int, options: TuneOptions) -> float:
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.lr * 0.5 * (1 + math.cos(math.pi * done))
