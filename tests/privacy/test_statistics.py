"""Intervals and tests against scipy and against laws they must obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from libortho.errors import ConfigError, NumericsError
from libortho.privacy.statistics import (
    TestResult,
    auc,
    bootstrap_ci,
    clopper_pearson,
    holm,
    judge_family,
    member_control_tests,
    paired_bootstrap_ratio,
)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (20, 20), (1, 20), (3, 200), (190, 200), (0, 1)])
def test_clopper_pearson_equals_scipy(k: int, n: int) -> None:
    found = clopper_pearson(k, n)
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_extracted_still_leaves_an_upper_bound() -> None:
    assert clopper_pearson(0, 20, 0.90).high == pytest.approx(0.139, abs=5e-4)
    assert clopper_pearson(0, 200, 0.90).high == pytest.approx(0.015, abs=5e-4)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5), (0, 0)])
def test_no_proportion(k: int, n: int) -> None:
    with pytest.raises(ConfigError):
        clopper_pearson(k, n)


def test_bootstrap_of_a_mean_covers_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = bootstrap_ci(values.tolist(), seed=1)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.interval.high == pytest.approx(values.mean() + half, abs=0.02)
    assert bootstrap_ci(values.tolist(), seed=1) == found
    assert bootstrap_ci(values.tolist(), seed=2) != found


def test_bootstrap_takes_other_statistics() -> None:
    found = bootstrap_ci(
        list(range(101)), lambda samples: np.median(samples, axis=-1), seed=0, resamples=500
    )
    assert found.value == 50
    assert found.interval.low < 50 < found.interval.high


def test_paired_ratio_ignores_what_windows_share() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(4, 3, size=(50, 1)) + rng.normal(size=(50, 30)) ** 2
    found = paired_bootstrap_ratio(reference + 0.01, reference, seed=0)
    assert found.value == pytest.approx(math.exp(0.01))
    assert found.interval.low == pytest.approx(found.interval.high)
    noisy = paired_bootstrap_ratio(
        reference + 0.01 + rng.normal(0, 0.1, size=reference.shape), reference, seed=0
    )
    assert noisy.interval.low < noisy.value < noisy.interval.high
    with pytest.raises(ConfigError, match="same"):
        paired_bootstrap_ratio(reference, reference[:-1], seed=0)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx(
        {"a": 0.06, "b": 0.03, "c": 0.06}
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_laws(p: list[float]) -> None:
    raw = {str(i): value for i, value in enumerate(p)}
    adjusted = holm(raw)
    assert list(adjusted) == list(raw)
    for name, value in raw.items():
        assert value <= adjusted[name] <= min(1.0, len(p) * value) + 1e-15
    order = sorted(raw, key=lambda name: raw[name])
    assert [adjusted[name] for name in order] == sorted(adjusted.values())


def test_holm_keeps_the_family_error_under_the_null() -> None:
    rng = np.random.default_rng(0)
    hits = sum(
        min(holm({str(i): float(v) for i, v in enumerate(row)}).values()) <= 0.05
        for row in rng.uniform(size=(2000, 6))
    )
    assert hits <= stats.binom.ppf(0.999, 2000, 0.05)


def test_a_family_is_what_was_listed() -> None:
    results = [TestResult("b", 0.5, 0.2), TestResult("a", 0.5, 0.001)]
    judged = judge_family(["a", "b"], results)
    assert [r.name for r in judged.results] == ["a", "b"]
    assert judged.adjusted == {"a": 0.002, "b": 0.2}
    assert judged.rejected() == ("a",)
    for wrong in (results[:1], [*results, TestResult("c", 0, 1)], [*results, results[0]]):
        with pytest.raises(ConfigError, match="listed beforehand"):
            judge_family(["a", "b"], wrong)
    with pytest.raises(ConfigError, match="listed beforehand"):
        judge_family(["a", "a"], [results[1], results[1]])


def test_member_control_tests_equal_scipy() -> None:
    rng = np.random.default_rng(3)
    nll, other = rng.normal(0, 1, 200), rng.normal(0.2, 1, 200)
    bits, others = rng.exponential(size=200), rng.exponential(size=200)
    ranks, exposed = member_control_tests(
        "tune",
        member_nll=nll.tolist(),
        control_nll=other.tolist(),
        member_exposure=bits.tolist(),
        control_exposure=others.tolist(),
    )
    assert (ranks.name, exposed.name) == ("tune/nll", "tune/exposure")
    u = stats.mannwhitneyu(nll, other, alternative="two-sided")
    assert ranks.p == pytest.approx(u.pvalue)
    assert ranks.statistic == pytest.approx(1 - u.statistic / 200**2)
    assert exposed.p == pytest.approx(stats.ks_2samp(bits, others).pvalue)


@pytest.mark.parametrize("shift", [-3.0, 3.0])
def test_leaks_and_overshoots_are_both_seen(shift: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 100))
    ranks, exposed = member_control_tests(
        "x",
        member_nll=(values[0] + shift).tolist(),
        control_nll=values[1].tolist(),
        member_exposure=(values[2] - shift).tolist(),
        control_exposure=values[3].tolist(),
    )
    assert ranks.p < 1e-6
    assert exposed.p < 1e-6
    assert (ranks.statistic > 0.9) == (shift < 0)


def test_constant_scores_show_nothing() -> None:
    same = [2.0] * 5
    results = member_control_tests(
        "x", member_nll=same, control_nll=same, member_exposure=same, control_exposure=same
    )
    assert [r.p for r in results] == [1.0, 1.0]
    assert results[0].statistic == 0.5


def test_auc_counts_ties_half() -> None:
    assert auc([1.0, 2.0], [2.0, 3.0]) == pytest.approx(3.5 / 4)
    assert auc([5.0], [1.0]) == 0.0


def test_values_that_are_not_finite_are_errors() -> None:
    with pytest.raises(NumericsError):
        auc([math.nan], [1.0])
    with pytest.raises(NumericsError):
        bootstrap_ci([1.0, math.inf], seed=0)
    with pytest.raises(NumericsError):
        holm({"a": math.nan})
    with pytest.raises(ConfigError):
        bootstrap_ci([], seed=0)
