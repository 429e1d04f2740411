"""A lower bound of ε from an attack: what differential privacy would forbid, and was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from libortho.errors import ConfigError
from libortho.privacy.statistics import clopper_pearson


@dataclass(frozen=True)
class EpsilonBound:
    """What one threshold test proves about ε.

    Attributes:
        epsilon: lower bound, 0 where the attack proves nothing.
        threshold: in nats; a secret with a lower NLL was called a member.
        true_positives: members called members, of ``n``.
        false_positives: controls called members, of ``n``.
        n: members, and also controls, that the bound was taken on.
    """

    epsilon: float
    threshold: float
    true_positives: int
    false_positives: int
    n: int


def epsilon_lower_bound(
    member_nll: Sequence[float],
    control_nll: Sequence[float],
    delta: float,
    confidence: float = 0.95,
) -> EpsilonBound:
    """ε_lower = log((TPR_low − δ) / FPR_high), for what (ε, δ)-DP demands: TPR ≤ e^ε FPR + δ.

    The threshold is the one that promises most on every other example; the rates and their
    Clopper-Pearson ends come from the rest, which the threshold never saw. Both ends hold at once
    with ``confidence`` (Bonferroni), as far as examples of one run are independent of each other.
    Jagielski et al., arXiv 2006.07709.

    Raises:
        ConfigError: for fewer than four members or controls, unequal numbers, or δ outside [0, 1).
    """
    if len(member_nll) != len(control_nll) or len(member_nll) < 4:
        raise ConfigError(
            "an audit of ε needs as many controls as members, at least four: "
            f"{len(control_nll)}, {len(member_nll)}"
        )
    if not 0 <= delta < 1:
        raise ConfigError(f"delta {delta}: expected a number in [0, 1)")
    choosing = (list(member_nll[::2]), list(control_nll[::2]))
    judging = (list(member_nll[1::2]), list(control_nll[1::2]))
    thresholds = sorted({*choosing[0], *choosing[1]})
    best = max(thresholds, key=lambda one: _bound(*choosing, one, delta, confidence).unclipped)
    found = _bound(*judging, best, delta, confidence)
    return EpsilonBound(max(0.0, found.unclipped), best, found.hits, found.alarms, len(judging[0]))


@dataclass(frozen=True)
class _Bound:
    unclipped: float
    hits: int
    alarms: int


def _bound(
    members: Sequence[float],
    controls: Sequence[float],
    threshold: float,
    delta: float,
    confidence: float,
) -> _Bound:
    hits = sum(one <= threshold for one in members)
    alarms = sum(one <= threshold for one in controls)
    low = clopper_pearson(hits, len(members), confidence).low - delta
    high = clopper_pearson(alarms, len(controls), confidence).high
    return _Bound(math.log(low / high) if low > 0 else -math.inf, hits, alarms)
