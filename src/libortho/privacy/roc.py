"""Receiver operating characteristics of scores that are lower on members, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm

from libortho.errors import ConfigError
from libortho.privacy.statistics import Estimate, Interval, clopper_pearson

_Floats = npt.NDArray[np.float64]
_CHUNK = 500


@dataclass(frozen=True)
class Rate:
    """A true positive rate at a bounded false positive rate.

    Attributes:
        caught: members below the threshold, of ``n``.
        estimate: their share, with the Clopper-Pearson interval at that threshold.
        fpr: share of controls that lie below it, too; at most what was allowed.
    """

    caught: int
    n: int
    estimate: Estimate
    fpr: float


def auc_estimate(
    members: Sequence[float],
    controls: Sequence[float],
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Estimate:
    """Probability that a member scores lower than a control, ties one half, with its interval.

    Percentile bootstrap that resamples members and controls apart. Where they are fully separated,
    or all scores are equal, every resample gives the same value, and Newcombe's score interval is
    taken instead (Newcombe 2006, Stat. Med. 25:559, method 5: Wilson's interval carried over to
    the AUC), so that no interval has width 0.
    """
    ours, theirs = np.asarray(members, float), np.asarray(controls, float)
    wins = (ours[:, None] < theirs) + 0.5 * (ours[:, None] == theirs)
    value = float(wins.mean())
    if value in (0.0, 1.0):
        return Estimate(value, _newcombe(value, len(ours), len(theirs), confidence))
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        w = rng.multinomial(len(ours), np.full(len(ours), 1 / len(ours)), size=size)
        v = rng.multinomial(len(theirs), np.full(len(theirs), 1 / len(theirs)), size=size)
        parts.append(((w @ wins) * v).sum(axis=1) / wins.size)
    tail = (1 - confidence) / 2
    low, high = map(float, np.quantile(np.concatenate(parts), [tail, 1 - tail]))
    if low == high:
        return Estimate(value, _newcombe(value, len(ours), len(theirs), confidence))
    return Estimate(value, Interval(low, high, confidence))


def tpr_at(members: Sequence[float], controls: Sequence[float], fpr: float) -> Rate:
    """Share of members below a threshold that at most ``fpr`` of the controls lie below.

    The threshold is the smallest control score above the allowed false positives, so that with
    fewer than 1/fpr controls none may be flagged.

    Args:
        fpr: in [0, 1), taken as the decimal number that it is written as: .29 of 100 controls
            are 29, although the nearest double is less.

    Raises:
        ConfigError: fpr is out of range, or there are no controls.
    """
    ordered = np.sort(np.asarray(controls, float))
    if not 0 <= fpr < 1 or not len(ordered):
        raise ConfigError(
            f"a false positive rate in [0, 1) and controls are needed: {fpr} of {len(ordered)}"
        )
    threshold = ordered[math.floor(Fraction(str(fpr)) * len(ordered))]
    caught = int((np.asarray(members, float) < threshold).sum())
    n = len(members)
    return Rate(
        caught,
        n,
        Estimate(caught / n, clopper_pearson(caught, n)),
        float((ordered < threshold).mean()),
    )


def roc_curve(members: Sequence[float], controls: Sequence[float]) -> list[tuple[float, float]]:
    """The curve's corners as (false positive rate, true positive rate), from (0, 0) to (1, 1)."""
    ours, theirs = np.sort(np.asarray(members, float)), np.sort(np.asarray(controls, float))
    thresholds = np.unique(np.concatenate([ours, theirs]))
    tpr = np.searchsorted(ours, thresholds, side="right") / len(ours)
    fpr = np.searchsorted(theirs, thresholds, side="right") / len(theirs)
    return [(0.0, 0.0), *zip(fpr.tolist(), tpr.tolist(), strict=True)]


def _newcombe(value: float, members: int, controls: int, confidence: float) -> Interval:
    """The values of theta whose own standard error, times z, reaches ``value``."""
    z2 = norm.ppf((1 + confidence) / 2) ** 2
    half = (members + controls) / 2 - 1

    def excess(theta: float) -> float:
        spread = 1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) * spread / (members * controls)
        return (value - theta) ** 2 - float(z2) * variance

    low = 0.0 if value == 0 else float(brentq(excess, 1e-12, min(value, 1 - 1e-12)))
    high = 1.0 if value == 1 else float(brentq(excess, max(value, 1e-12), 1 - 1e-12))
    return Interval(low, high, confidence)
