"""Answers of several models to the same problems, compared problem by problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from libortho.errors import ConfigError
from libortho.privacy.statistics import Estimate, Interval


@dataclass(frozen=True)
class Gap:
    """By how much one model answers more problems than another.

    Attributes:
        value: difference of the shares of right answers.
        error: its standard error, of paired differences.
    """

    value: float
    error: float

    def exceeds(self, errors: float) -> bool:
        """Whether the gap is larger than that many standard errors."""
        return self.value > errors * self.error


def gap(better: Sequence[bool], worse: Sequence[bool]) -> Gap:
    """The gap between two models on the same problems.

    Raises:
        ConfigError: where the two did not answer equally many problems, or fewer than two.
    """
    above, below = _answers(better, worse)
    difference = above - below
    return Gap(float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(difference)))


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Two-sided exact p of McNemar's test (McNemar, 1947): do two models answer equally well?

    Only problems that exactly one of them answers count; under the null hypothesis each of the
    two is as likely to be that one.

    Raises:
        ConfigError: as :func:`gap`.
    """
    one, other = _answers(ours, theirs)
    only_one, only_other = int((one > other).sum()), int((other > one).sum())
    discordant = only_one + only_other
    if not discordant:
        return 1.0
    return min(1.0, 2 * float(binom.cdf(min(only_one, only_other), discordant, 0.5)))


def recovered_fraction(
    full: Sequence[bool],
    rounded: Sequence[bool],
    repaired: Sequence[bool],
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Estimate:
    """ρ = (acc(repaired) − acc(rounded)) / (acc(full) − acc(rounded)), paired bootstrap.

    Problems are resampled, each with all three answers. A resample in which nothing was lost has
    no ρ and counts as one beyond either end; the caller asks for a gap of several standard errors
    first, where such resamples are rare.

    Raises:
        ConfigError: as :func:`gap`, or where nothing was lost.
    """
    whole, low = _answers(full, rounded)
    mended, _ = _answers(repaired, rounded)
    lost, won = whole - low, mended - low
    if lost.sum() <= 0:
        raise ConfigError("nothing was lost by rounding, so that no share of it can come back")
    draws = np.random.default_rng(seed).integers(len(low), size=(resamples, len(low)))
    above, below = (
        np.concatenate([v[d].sum(1) for d in np.array_split(draws, 20)]) for v in (won, lost)
    )
    beyond = np.where(np.arange(resamples) % 2 == 0, -np.inf, np.inf)
    ratios = np.where(below > 0, above / np.where(below > 0, below, 1.0), beyond)
    tail = (1 - confidence) / 2
    # No interpolation: between a ratio and an infinity there is nothing.
    ends = np.quantile(ratios, [tail, 1 - tail], method="nearest")
    interval = Interval(float(ends[0]), float(ends[1]), confidence)
    return Estimate(float(won.sum() / lost.sum()), interval)


def _answers(
    ours: Sequence[bool], theirs: Sequence[bool]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ConfigError(
            f"paired answers need the same problems, at least two: {len(ours)}, {len(theirs)}"
        )
    return np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
