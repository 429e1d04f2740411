"""What a split leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from libortho import gate
from libortho.model import load
from libortho.privacy.encode import Encoded
from libortho.privacy.score import score
from libortho.progress import Progress, silent
from libortho.streams.base import BaseStream
from libortho.streams.ortho import OrthoStream


@dataclass
class Split:
    """A base and the stream that was split from it.

    Attributes:
        recall: share of the private completions recited at α = 1; None where no data was given.
        recall_closed: the same at α = 0, where the guarantee is ``measured``.
        teacher: whose logits the replay kept to; None where nothing was trained.
        curve: per training step: loss, recall, kl, lr.
    """

    base: BaseStream
    stream: OrthoStream
    recall: float | None = None
    teacher: str | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    recall_closed: float | None = None


def measured(
    base: BaseStream,
    stream: OrthoStream,
    private: Sequence[Encoded],
    *,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Split:
    """A split whose guarantee is ``measured``: recall at α = 1 and at α = 0, where there is data.

    What it does not tell: at a recall of 0 a secret may still be exposed (``libortho audit``).
    """
    if not private:
        return Split(base, stream)
    model = load(base.path, [stream.path], device=device)
    recalled = {}
    for alpha in (1.0, 0.0):
        with gate.alpha({stream.name: alpha}):
            scores = score(model, private, stage=f"recall at α={alpha:g}", progress=progress)
        recalled[alpha] = sum(one.exact for one in scores) / len(scores)
    return Split(base, stream, recall=recalled[1.0], recall_closed=recalled[0.0])
