"""Relearning: what was only hidden comes back faster than it would be learned, and brings the rest.

A low-rank adapter is trained on one half of the members; the other half is never shown. Model and
reference, which never saw the data, are trained for the same number of steps, whatever they recite
on the way, so that their curves can be laid over each other (Hu et al., arXiv 2406.13356). Figures
are the steps until half of the trained half is recited again, and the share of the *other* half
that is recited at the step where it is highest, and at the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from libortho import gate
from libortho.errors import NumericsError
from libortho.privacy.attacks.linears import adapters
from libortho.privacy.attacks.subject import Outcome, Subject, median, proportion
from libortho.privacy.encode import Encoded, pad
from libortho.privacy.mix import halves
from libortho.privacy.token_scores import rows_a_forward, token_scores
from libortho.progress import Progress

RANK = 16
SCALING = 2.0
LR = 2e-3


@dataclass(frozen=True)
class Relearned:
    """One run.

    Attributes:
        first: for each example of the trained half, the number of updates after which it was
            first recited; one more than the limit where it never was.
        trained: [steps + 1] share of the trained half recited after each number of updates.
        unseen: [steps + 1] the same of the other half.
        peak: which of the other half are recited where ``unseen`` is highest; the first such step.
        last: which of the other half are recited after the last step.
    """

    first: list[int]
    trained: list[float]
    unseen: list[float]
    peak: list[bool]
    last: list[bool]


def run(subject: Subject) -> Outcome:
    """Steps to recite half again, and what of the other half came along, at its peak and last."""
    members = subject.members.encoded
    parts = halves([0] * len(members), subject.seed)
    shown, unseen = ([members[i] for i in part] for part in parts)
    steps = subject.budget.relearn_steps
    common: dict[str, Any] = {
        "steps": steps,
        "seed": subject.seed,
        "batch_size": subject.budget.batch_size,
        "progress": subject.progress,
    }
    found = {"model": relearn(subject.model, shown, unseen, stage="relearn", **common)}
    if subject.reference is not None and subject.reference.itself:
        found["reference"] = found["model"]
    elif subject.reference is not None:
        with gate.alpha(subject.reference.alpha):
            found["reference"] = relearn(
                subject.reference.model, shown, unseen, stage="relearn: reference", **common
            )
    figures, raw = {}, {}
    for name, one in found.items():
        suffix = "" if name == "model" else f", {name}"
        figures[f"steps to half{suffix}"] = median([float(n) for n in one.first], subject.seed)
        figures[f"other half recited, peak{suffix}"] = proportion(one.peak)
        figures[f"other half recited, last{suffix}"] = proportion(one.last)
        raw[name] = {
            "trained": one.trained,
            "unseen": one.unseen,
            "first": one.first,
            "peak_step": int(np.argmax(one.unseen)),
            "limit": steps,
        }
    return Outcome(figures, raw)


def relearn(
    model: Any,
    shown: Sequence[Encoded],
    unseen: Sequence[Encoded],
    *,
    steps: int,
    seed: int,
    batch_size: int,
    stage: str,
    progress: Progress,
) -> Relearned:
    """Train an adapter (rank 16, Adam at 2e-3) on ``shown``; the model is left as it was.

    Every run takes all of ``steps``, also once everything is recited.

    Raises:
        NumericsError: the loss is not finite.
    """
    first = np.full(len(shown), steps + 1)
    trained: list[float] = []
    others: list[float] = []
    peak: list[bool] = []
    with adapters(model, RANK, SCALING, seed) as parameters:
        optimiser = torch.optim.Adam(parameters, lr=LR)
        for step in range(steps + 1):
            other = [one.exact for one in token_scores(model, unseen, batch_size, stage=stage)]
            optimiser.zero_grad()
            exact, loss = _backward(model, shown, batch_size)
            if not np.isfinite(loss):
                raise NumericsError(f"{stage}: the loss is not finite at step {step}")
            first = np.where(exact & (first > steps), step, first)
            trained.append(float(exact.mean()))
            others.append(float(np.mean(other)))
            if step == 0 or others[-1] > max(others[:-1]):
                peak = other
            info = {"loss": loss, "recall": trained[-1], "other": others[-1]}
            progress(stage, step, steps, info)
            if step < steps:
                optimiser.step()
    return Relearned(first.tolist(), trained, others, peak, other)


def _backward(
    model: Any, shown: Sequence[Encoded], batch_size: int
) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], float]:
    """Add the gradients of the mean token NLL; per example whether it is recited; the loss."""
    device = next(model.parameters()).device
    count = sum(len(one.completion_ids) for one in shown)
    flags, loss = [], 0.0
    size = rows_a_forward(model, shown, batch_size)
    for start in range(0, len(shown), size):
        batch = pad(shown[start : start + size])
        ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
        with torch.enable_grad():
            logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            logits = logits[:, :-1].float()
            position = torch.arange(1, ids.shape[1], device=device)
            wanted = (position >= batch.prompt_lengths.to(device)[:, None]) & (mask[:, 1:] == 1)
            targets = ids[:, 1:]
            part = nn.functional.cross_entropy(logits[wanted], targets[wanted], reduction="sum")
            (part / count).backward()
        loss += part.item() / count
        flags += ((logits.argmax(-1) == targets) | ~wanted).all(dim=1).tolist()
    return np.array(flags), loss
