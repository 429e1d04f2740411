"""The likelihood-ratio attack LiRA (Carlini et al., arXiv 2112.03570), online form.

For each example, shadow runs that were trained on it and runs that were not give two normal laws
of phi = log(p / (1 - p)); the score is the log-likelihood ratio of the model's own phi. p is the
geometric mean of the completion's token probabilities. Below 64 runs the variances are pooled over
the examples, as the paper advises.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from libortho.errors import ConfigError
from libortho.privacy.attacks.subject import Outcome, Subject, membership
from libortho.privacy.shadows import Shadows

POOLED_BELOW = 64
_LEAST_NLL = 1e-9

_Floats = npt.NDArray[np.float64]


def run(subject: Subject) -> Outcome:
    """Score: minus the log-likelihood ratio of having been trained on.

    Raises:
        ConfigError: without shadow runs.
    """
    if subject.shadows is None:
        raise ConfigError("LiRA needs shadow runs")
    halves = (subject.members, subject.controls)
    lengths = np.array([len(t.log_prob) for half in halves for t in half.tokens], dtype=float)
    nll = np.array([value for half in halves for value in half.nll])
    scores = (-log_ratio(nll, subject.shadows, lengths)).tolist()
    border = len(subject.members.nll)
    return membership("LiRA", scores[:border], scores[border:], subject.seed)


def log_ratio(nll: _Floats, shadows: Shadows, lengths: _Floats) -> _Floats:
    """log N(phi; in) - log N(phi; out) of each example.

    Args:
        nll: [examples] under the attacked model, in nats.
        shadows: the same examples under the shadow runs.
        lengths: [examples] tokens of each completion.
    """
    ours, theirs = logit(nll / lengths), logit(shadows.nll / lengths)
    inside = _normal(ours, theirs, shadows.inside)
    return inside - _normal(ours, theirs, ~shadows.inside)


def logit(nll_per_token: _Floats) -> _Floats:
    """log(p / (1 - p)) for p = exp(-nll), stable at both ends."""
    nll = np.maximum(nll_per_token, _LEAST_NLL)
    return np.asarray(-nll - np.log(-np.expm1(-nll)))


def _normal(values: _Floats, shadows: _Floats, chosen: npt.NDArray[np.bool_]) -> _Floats:
    """Log-density of each value under the normal law of its chosen shadow values."""
    count = chosen.sum(axis=0)
    means = np.where(chosen, shadows, 0.0).sum(axis=0) / count
    squares = (np.where(chosen, shadows - means, 0.0) ** 2).sum(axis=0)
    if len(shadows) < POOLED_BELOW:
        variance = np.full_like(means, squares.sum() / (count - 1).sum())
    else:
        variance = squares / (count - 1)
    return np.asarray(norm.logpdf(values, means, np.sqrt(np.maximum(variance, 1e-12))))
