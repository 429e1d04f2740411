"""ROC figures against hand counts, brute force and the laws of normal scores."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from libortho.errors import ConfigError
from libortho.privacy.roc import auc_estimate, roc_curve, tpr_at

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(members=scores, controls=scores)
def test_auc_is_the_share_of_pairs_won_and_the_area_under_the_curve(
    members: list[float], controls: list[float]
) -> None:
    won = sum((a < b) + 0.5 * (a == b) for a in members for b in controls)
    found = auc_estimate(members, controls, seed=0, resamples=50)
    assert found.value == pytest.approx(won / (len(members) * len(controls)))
    assert found.interval.low < found.interval.high
    points = roc_curve(members, controls)
    assert points[0] == (0, 0)
    assert points[-1] == (1, 1)
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    assert area == pytest.approx(found.value)


def test_auc_of_normal_scores_is_the_textbook_value() -> None:
    """Members one standard deviation lower: AUC = Phi(1 / sqrt 2)."""
    rng = np.random.default_rng(0)
    found = auc_estimate(rng.normal(-1, 1, 1500), rng.normal(0, 1, 1500), seed=0, resamples=2000)
    truth = norm.cdf(1 / math.sqrt(2))
    assert found.interval.low < truth < found.interval.high
    # Hanley and McNeil's standard error at this AUC and these sizes.
    q1, q2, n = truth / (2 - truth), 2 * truth**2 / (1 + truth), 1500
    variance = truth * (1 - truth) + (n - 1) * (q1 + q2 - 2 * truth**2)
    width = 2 * 1.96 * math.sqrt(variance) / n
    assert found.interval.high - found.interval.low == pytest.approx(width, rel=0.1)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    truth, covered = norm.cdf(0.8 / math.sqrt(2)), 0
    for seed in range(300):
        found = auc_estimate(
            rng.normal(-0.8, 1, 40), rng.normal(0, 1, 40), seed=seed, resamples=400
        )
        covered += found.interval.low <= truth <= found.interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_full_separation_has_an_interval_that_shrinks_with_n() -> None:
    few = auc_estimate([0.0] * 10, [1.0] * 10, seed=0)
    many = auc_estimate([0.0] * 200, [1.0] * 200, seed=0)
    assert few.value == many.value == 1 == few.interval.high
    assert few.interval.low < many.interval.low < 1
    # With one member, m controls above it: P(all above) = theta^m at most, as in the rule of three.
    assert 0.6 < few.interval.low < 0.9
    mirrored = auc_estimate([1.0] * 10, [0.0] * 10, seed=0)
    assert mirrored.interval.high == pytest.approx(1 - few.interval.low)


def test_equal_scores_have_an_interval_that_shrinks_with_n() -> None:
    """All scores tied: no resample differs, and yet little is known of the AUC."""
    few = auc_estimate([1.0] * 10, [1.0] * 10, seed=0)
    many = auc_estimate([1.0] * 200, [1.0] * 200, seed=0)
    assert few.value == many.value == 0.5
    assert 0.2 < few.interval.low < many.interval.low < 0.47
    assert few.interval.high == pytest.approx(1 - few.interval.low)


def test_the_allowed_controls_are_counted_exactly() -> None:
    """In doubles .29 · 100 is 28.999…, .57 · 100 is 56.999…: one control too few."""
    controls = [float(i) for i in range(100)]
    for fpr, allowed in ((0.29, 29), (0.57, 57), (0.1, 10), (0.01, 1)):
        found = tpr_at([allowed - 0.5, allowed + 0.5], controls, fpr)
        assert found.caught == 1, fpr
        assert found.fpr == fpr
    assert tpr_at([2.5, 3.5], controls[:30], 0.1).caught == 1
    with pytest.raises(ConfigError):
        tpr_at([0.0], controls, 1.0)
    with pytest.raises(ConfigError):
        tpr_at([0.0], [], 0.01)


def test_tpr_counts_members_below_the_allowed_controls() -> None:
    controls = [float(i) for i in range(200)]
    found = tpr_at([-1.0, 0.5, 1.5, 2.0, 2.5, 300.0], controls, 0.01)
    # Two of 200 controls may lie below: the threshold is the third smallest, 2.0, exclusive.
    assert found.caught == 3
    assert found.estimate.value == 0.5
    assert found.fpr == 0.01
    few = tpr_at([-1.0, 0.0, 5.0], controls[:50], 0.01)
    assert few.caught == 1
    assert few.fpr == 0


def test_tpr_of_the_unseen_is_near_the_rate_allowed() -> None:
    rng = np.random.default_rng(2)
    rates = [
        tpr_at(rng.normal(size=200), rng.normal(size=200), 0.01).estimate.value for _ in range(400)
    ]
    assert np.mean(rates) == pytest.approx(3 / 201, rel=0.15)
