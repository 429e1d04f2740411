"""Membership by the least likely tokens: min-k% (Shi et al., arXiv 2310.16789)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from libortho.privacy.attacks.subject import Outcome, Subject, membership

SHARE = 0.2


def run(subject: Subject) -> Outcome:
    """Score: minus the mean log-probability of the 20% least likely tokens."""
    members, controls = (
        [-lowest_mean(one.log_prob, SHARE) for one in half.tokens]
        for half in (subject.members, subject.controls)
    )
    return membership("min-k%", members, controls, subject.seed)


def lowest_mean(values: npt.NDArray[np.float64], share: float) -> float:
    """Mean of the lowest ``share`` of the values, at least one of them."""
    count = max(1, math.floor(share * len(values)))
    return float(np.sort(values)[:count].mean())
