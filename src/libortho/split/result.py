"""What a split leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field

from libortho.streams.base import BaseStream
from libortho.streams.ortho import OrthoStream


@dataclass
class Split:
    """A base and the stream that was split from it.

    Attributes:
        recall: share of the private completions recited at α = 1; None where no data was given.
        teacher: whose logits the replay kept to; None where nothing was trained.
        curve: per training step: loss, recall, kl, lr.
    """

    base: BaseStream
    stream: OrthoStream
    recall: float | None = None
    teacher: str | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
