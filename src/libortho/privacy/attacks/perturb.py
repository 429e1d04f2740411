"""Noise and pruning: a base that merely hides secrets may give them up when it is shaken.

The controls' NLL stands beside each level: it tells what the change did to the model at large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from libortho.privacy.attacks.subject import Outcome, Subject
from libortho.privacy.attacks.sweep import Change, swept

NOISE = (0.01, 0.03, 0.1, 0.3)
PRUNED = (0.1, 0.3, 0.5, 0.7)


def run(subject: Subject) -> Outcome:
    """Recall, AUC and NLL under Gaussian noise and under pruning by magnitude."""
    changes: dict[str, Change] = {
        f"noise {share:g} σ": noise(share, subject.seed) for share in NOISE
    }
    changes |= {f"pruned {share:.0%}": prune(share) for share in PRUNED}
    return swept(subject, changes)


def noise(share: float, seed: int) -> Change:
    """Add Gaussian noise of ``share`` of the matrix' own standard deviation."""
    generator = torch.Generator().manual_seed(seed)

    def change(weight: Tensor) -> Tensor:
        noise = torch.randn(weight.shape, generator=generator).to(weight.device)
        return weight + share * weight.std() * noise

    return change


def prune(share: float) -> Change:
    """Zero the ``share`` of a matrix' non-zero entries that is smallest in magnitude.

    An INT4 base holds some 15% of zeros: counted in, they would be all that a small share removes.
    """

    def change(weight: Tensor) -> Tensor:
        held = weight[weight != 0].abs()
        count = round(share * held.numel())
        if count == 0:
            return weight
        threshold = held.kthvalue(count).values
        return torch.where(weight.abs() <= threshold, 0.0, weight)

    return change
