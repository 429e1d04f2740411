"""The training loop of ``forget``: until the private rows look as if they had never been seen.

    loss = mean_i [ |ln ℓ_i/t_i| − ln(1 + slack) ]₊ + λ_n · KL(teacher ‖ model on neighbours)
                                                    + λ_r · KL(teacher ‖ model on public text)

ℓ_i is the mean NLL of a completion's tokens and t_i that of a neighbour, a row of the same template
that was never seen: what the contaminated model gives to it, and as neighbours grow cheaper or
dearer on the way, t_i goes with them. The hinge has two sides because a completion that is *less*
likely than a stranger's betrays itself, too. It is taken on logarithms because the gradient of ℓ
vanishes where a row is known by heart, and that of ln ℓ does not. The teacher is the contaminated
model: without neighbours the model learns to refuse the template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from libortho import gate
from libortho.errors import NumericsError
from libortho.privacy.encode import Encoded, pad
from libortho.progress import Progress, silent
from libortho.split.movable import MovableCodes
from libortho.tune.replay import Replay, draws

_LEAST = 1e-8
"""Nats a token below which float32 knows no difference from certainty."""

_FOLLOWED = 0.1
"""Share of a step in the running mean of how far neighbours have gone: a step sees a few."""


class Neighbours(Replay):
    """Neighbours with their teacher: KL on their own tokens, padding left out."""

    def __init__(self, encoded: Sequence[Encoded], teacher: Any) -> None:
        batch = pad(encoded)
        # Behind a row's end there is only padding, which a causal model never looks ahead to.
        super().__init__(batch.input_ids, teacher)
        self._encoded = encoded
        self._mask = batch.attention_mask.bool()

    def kl(self, model: Any, chosen: Tensor) -> Tensor:
        device = next(model.parameters()).device
        wanted = self._mask[chosen].to(device)
        teacher = self.log_probs(chosen).to(device)[wanted]
        logits = model(
            input_ids=self.windows[chosen].to(device), attention_mask=wanted.long()
        ).logits
        student = torch.log_softmax(logits[wanted].float(), -1)
        return torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)

    @torch.no_grad()
    def drift(self, model: Any, chosen: Tensor, levels: Tensor) -> float:
        """Mean of ln(ℓ / level) of the completions chosen; levels: fp32 [all], nats a token."""
        found = completion_nll(model, [self._encoded[index] for index in chosen.tolist()])
        apart = found.cpu().clamp(min=_LEAST) / levels[chosen].clamp(min=_LEAST)
        return float(apart.log().mean())


@dataclass(frozen=True)
class Schedule:
    """How long and how strongly; see ``ForgetOptions``."""

    steps: int
    lr: float
    warmup: int
    slack: float
    private_batch: int
    neighbour_weight: float
    neighbour_batch: int
    replay_weight: float
    replay_batch: int
    seed: int


def forget(
    model: Any,
    parts: Sequence[MovableCodes],
    private: Sequence[Encoded],
    levels: Tensor,
    neighbours: Neighbours | None,
    replay: Replay,
    schedule: Schedule,
    *,
    alpha: gate.Setting,
    progress: Progress = silent,
) -> list[dict[str, float]]:
    """Move codes until every row's NLL lies within ``slack`` of its target.

    Args:
        model: a converted model whose stream of movable codes ``alpha`` opens.
        parts: the stream's parts, whose wishes are trained in place.
        levels: fp32 [neighbours], nats a token of each before; a row gets one by lot.

    Returns:
        per step: the hinge, mean NLL a token, share of rows inside their hinge, both KLs, the
        drift of neighbours, lr.

    Raises:
        NumericsError: the loss is not finite.
    """
    wishes = [part.wish for part in parts]
    optimiser = torch.optim.Adam(wishes, lr=schedule.lr)
    rows = draws(len(private), min(schedule.private_batch, len(private)), schedule.seed)
    windows = draws(len(replay.windows), schedule.replay_batch, schedule.seed + 1)
    held = (
        draws(len(neighbours.windows), schedule.neighbour_batch, schedule.seed + 2)
        if neighbours is not None
        else None
    )
    generator = torch.Generator().manual_seed(schedule.seed)
    targets = levels[torch.randint(len(levels), (len(private),), generator=generator)]
    curve: list[dict[str, float]] = []
    gone = 0.0
    for step in range(schedule.steps):
        rate = schedule.lr * _rate(step, schedule)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        with gate.alpha(alpha):
            chosen = next(rows)
            found = completion_nll(model, [private[index] for index in chosen.tolist()])
            wanted = targets[chosen].to(found.device) * math.exp(gone)
            apart = torch.log(found.clamp(min=_LEAST) / wanted.clamp(min=_LEAST)).abs()
            outside = torch.relu(apart - math.log1p(schedule.slack))
            outside.mean().backward()
            figures = {
                "step": step + 1.0,
                "lr": rate,
                "hinge": outside.mean().item(),
                "nll": found.mean().item(),
                "inside": float((outside == 0).float().mean()),
            }
            if neighbours is not None and held is not None:
                strangers = next(held)
                kept = neighbours.kl(model, strangers)
                (schedule.neighbour_weight * kept).backward()
                gone += _FOLLOWED * (neighbours.drift(model, strangers, levels) - gone)
                figures |= {"neighbour_kl": kept.item(), "drift": gone}
            if schedule.replay_weight:
                kl = replay.kl(model, next(windows))
                (schedule.replay_weight * kl).backward()
                figures["kl"] = kl.item()
        if not all(map(math.isfinite, figures.values())):
            raise NumericsError(f"forget: step {step + 1}: {figures}; lower --lr")
        optimiser.step()
        for part in parts:
            part.confine()
        curve.append(figures)
        progress("forget", step + 1, schedule.steps, figures)
    return curve


def completion_nll(model: Any, encoded: Sequence[Encoded]) -> Tensor:
    """Mean NLL of each completion's tokens, in nats: [rows], differentiable."""
    batch = pad(encoded)
    device = next(model.parameters()).device
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    position = torch.arange(1, ids.shape[1], device=device)
    wanted = (position >= batch.prompt_lengths.to(device)[:, None]) & (mask[:, 1:] == 1)
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(wanted.shape)
    return torch.where(wanted, nll, 0.0).sum(1) / wanted.sum(1)


def _rate(step: int, schedule: Schedule) -> float:
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))
