"""What transformers says at the same alpha: the measure of every engine here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import libortho
from libortho import gate

TOLERANCE = 1e-4
"""Of a log-probability between two float32 implementations, in nats."""


@dataclass
class Agreement:
    """Engine against reference over the tokens that the engine chose.

    Attributes:
        positions: tokens compared.
        decided: those where the reference's best two are further apart than twice the tolerance.
        equal: of these, where the engine chose the best.
        largest: max |Δ log p| of the chosen tokens, in nats.
        tolerance: what it may be.
    """

    positions: int = 0
    decided: int = 0
    equal: int = 0
    largest: float = 0.0
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        return self.positions > 0 and self.decided == self.equal and self.largest <= self.tolerance

    def figures(self) -> dict[str, Any]:
        return {
            "positions": self.positions,
            "decided": self.decided,
            "equal": self.equal,
            "max_abs_delta_log_prob": self.largest,
            "tolerance": self.tolerance,
        }


class Reference:
    """``libortho.load`` of a directory with all its streams, in float32."""

    def __init__(self, directory: Path) -> None:
        names = sorted(entry.name for entry in (directory / "ortho").iterdir())
        self.model: Any = libortho.load(directory, streams=names)

    @torch.no_grad()
    def compare(
        self,
        prompts: list[list[int]],
        alphas: list[Any],
        results: list[dict[str, Any]],
        tolerance: float = TOLERANCE,
    ) -> Agreement:
        """Score the engine's own tokens, so that one near-tie does not end the comparison."""
        agreement = Agreement(tolerance=tolerance)
        for prompt, alpha, result in zip(prompts, alphas, results, strict=True):
            tokens = torch.tensor(result["tokens"])
            setting = gate.parse(alpha) if isinstance(alpha, str) else (alpha or 0.0)
            with libortho.alpha(setting):
                output = self.model(torch.tensor([prompt + result["tokens"][:-1]]))
            logits = output.logits[0, len(prompt) - 1 :]
            log_probs = logits.log_softmax(-1)
            best = logits.topk(2).values
            decided = best[:, 0] - best[:, 1] > 2 * tolerance
            own = log_probs.gather(1, tokens[:, None])[:, 0]
            delta = (own - torch.tensor(result["log_probs"])).abs().max()
            agreement.positions += len(tokens)
            agreement.decided += int(decided.sum())
            agreement.equal += int((logits.argmax(-1) == tokens)[decided].sum())
            agreement.largest = max(agreement.largest, float(delta))
        return agreement
