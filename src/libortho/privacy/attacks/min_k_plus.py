"""Membership by standardised token likelihoods: min-k%++ (Zhang et al., arXiv 2404.02936)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from libortho.privacy.attacks.min_k import SHARE, lowest_mean
from libortho.privacy.attacks.subject import Outcome, Subject, membership
from libortho.privacy.token_scores import TokenScores

_LEAST_STD = 1e-6


def run(subject: Subject) -> Outcome:
    """Score: minus the mean of the 20% lowest standardised log-probabilities."""
    members, controls = (
        [-lowest_mean(standardised(one), SHARE) for one in half.tokens]
        for half in (subject.members, subject.controls)
    )
    return membership("min-k%++", members, controls, subject.seed)


def standardised(one: TokenScores) -> npt.NDArray[np.float64]:
    """(log p - mean) / standard deviation under the model's own distribution, token by token.

    A distribution that is certain of one token has no spread; it counts as ``_LEAST_STD``.
    """
    return (one.log_prob - one.mean) / np.maximum(one.std, _LEAST_STD)
