"""Intervals and tests: seeded, two-sided, and in families that are named beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from libortho.errors import ConfigError, NumericsError

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class TestResult:
    """One member/control test.

    Attributes:
        name: as listed in the family.
        statistic: AUC for Mann-Whitney, the largest distance of the CDFs for Kolmogorov-Smirnov.
        p: raw two-sided p-value.
    """

    __test__ = False  # pytest would otherwise collect the class for its name

    name: str
    statistic: float
    p: float


@dataclass(frozen=True)
class FamilyResult:
    """A family of tests after Holm's adjustment.

    Attributes:
        results: in the order of the family.
        adjusted: Holm-adjusted p-value by test name.
    """

    results: tuple[TestResult, ...]
    adjusted: Mapping[str, float]

    def rejected(self, level: float = 0.05) -> tuple[str, ...]:
        """Names of the tests whose adjusted p-value does not exceed ``level``."""
        return tuple(r.name for r in self.results if self.adjusted[r.name] <= level)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact two-sided interval of a proportion (Clopper and Pearson, 1934).

    Raises:
        ConfigError: unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ConfigError(f"a proportion needs 0 <= successes <= n and n > 0: {successes} of {n}")
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.isf(tail, successes + 1, n - successes))
    return Interval(low, high, confidence)


def bootstrap_ci(
    values: Sequence[float],
    statistic: Callable[[_Floats], _Floats] = lambda samples: samples.mean(axis=-1),
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Estimate:
    """Percentile bootstrap of a statistic of independent values.

    Args:
        values: [n].
        statistic: maps samples [..., n] to [...].
        seed: of the resampling.
    """
    array = _finite(values, "values")
    draws = _draws(len(array), resamples, seed)
    samples = np.concatenate([statistic(array[part]) for part in np.array_split(draws, 20)])
    return Estimate(float(statistic(array)), _percentile(samples, confidence))


def paired_bootstrap_ratio(
    nll: npt.ArrayLike,
    reference_nll: npt.ArrayLike,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Estimate:
    """Ratio of two perplexities on the same windows, which are resampled in pairs.

    exp(mean(nll) - mean(reference_nll)); the tokens of one window depend on each other, so
    windows are what is resampled.

    Args:
        nll: [windows, tokens] in nats.
        reference_nll: same shape, same tokens, under the model in the denominator.
        seed: of the resampling.

    Raises:
        ConfigError: where the shapes differ.
    """
    ours, theirs = _finite(nll, "nll"), _finite(reference_nll, "reference_nll")
    if ours.shape != theirs.shape or ours.ndim != 2:
        raise ConfigError(
            f"paired perplexities need the same [windows, tokens]: {ours.shape}, {theirs.shape}"
        )
    difference = (ours - theirs).mean(axis=1)
    samples = difference[_draws(len(difference), resamples, seed)].mean(axis=1)
    ends = _percentile(samples, confidence)
    return Estimate(
        float(np.exp(difference.mean())),
        Interval(float(np.exp(ends.low)), float(np.exp(ends.high)), confidence),
    )


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (Holm, 1979), by name.

    Raises:
        NumericsError: for a p-value outside [0, 1].
    """
    bad = {name: value for name, value in p.items() if not 0 <= value <= 1}
    if bad:
        raise NumericsError(f"p-values outside [0, 1]: {bad}")
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def judge_family(family: Sequence[str], results: Sequence[TestResult]) -> FamilyResult:
    """Adjust the tests of a family that was listed before the run.

    Raises:
        ConfigError: unless the results are exactly the listed tests, each once: a family chosen
            after seeing its p-values has no error rate.
    """
    found = [result.name for result in results]
    if sorted(found) != sorted(family) or len(set(found)) != len(found):
        raise ConfigError(
            "the tests run are not the family listed beforehand: "
            f"missing {sorted(set(family) - set(found))}, unlisted "
            f"{sorted(set(found) - set(family))}, {len(found)} run, {len(family)} listed"
        )
    by_name = {result.name: result for result in results}
    return FamilyResult(
        tuple(by_name[name] for name in family),
        holm({name: by_name[name].p for name in family}),
    )


def member_control_tests(
    name: str,
    *,
    member_nll: Sequence[float],
    control_nll: Sequence[float],
    member_exposure: Sequence[float],
    control_exposure: Sequence[float],
) -> tuple[TestResult, TestResult]:
    """The two member/control tests of one condition, both two-sided.

    Mann-Whitney on NLL, whose statistic is the AUC, and Kolmogorov-Smirnov on exposure. Exposures
    must be independent of each other (``exposure_sampled``): ranks of controls among themselves
    are a permutation, not a sample.

    Args:
        name: of the condition; the tests are ``NAME/nll`` and ``NAME/exposure``.
    """
    ours, theirs = _finite(member_nll, "member_nll"), _finite(control_nll, "control_nll")
    exposed = _finite(member_exposure, "member_exposure")
    baseline = _finite(control_exposure, "control_exposure")
    # The normal approximation divides by the spread of the ranks, which constants do not have.
    constant = np.ptp(np.concatenate([ours, theirs])) == 0
    rank_p = 1.0 if constant else stats.mannwhitneyu(ours, theirs, alternative="two-sided").pvalue
    distance = stats.ks_2samp(exposed, baseline, alternative="two-sided")
    return (
        TestResult(f"{name}/nll", auc(member_nll, control_nll), float(rank_p)),
        TestResult(f"{name}/exposure", float(distance.statistic), float(distance.pvalue)),
    )


def auc(member_nll: Sequence[float], control_nll: Sequence[float]) -> float:
    """Probability that a member has a lower NLL than a control; ties count one half."""
    ours, theirs = _finite(member_nll, "member_nll"), _finite(control_nll, "control_nll")
    below = (ours[:, None] < theirs[None, :]).mean()
    return float(below + 0.5 * (ours[:, None] == theirs[None, :]).mean())


def _draws(n: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def _percentile(samples: _Floats, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(low), float(high), confidence)


def _finite(values: npt.ArrayLike, whose: str) -> _Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ConfigError(f"{whose}: no values")
    if not np.isfinite(array).all():
        raise NumericsError(f"{whose}: {int((~np.isfinite(array)).sum())} value(s) are not finite")
    return array
