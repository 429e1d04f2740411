"""Paired comparisons against hand counts and against the law they are built on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from libortho.errors import ConfigError
from libortho.evaluate.paired import gap, mcnemar, recovered_fraction


def answers(text: str) -> list[bool]:
    return [letter == "1" for letter in text]


def test_the_gap_has_the_error_of_paired_differences() -> None:
    found = gap(answers("1111110000"), answers("1110000000"))
    differences = [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert found.value == pytest.approx(0.3)
    assert found.error == pytest.approx(np.std(differences, ddof=1) / np.sqrt(10))
    assert found.exceeds(1.9)
    assert not found.exceeds(2.0)


def test_mcnemar_counts_only_what_one_of_two_answers() -> None:
    ours, theirs = answers("1" * 9 + "0" * 2 + "1" * 50), answers("0" * 9 + "1" * 2 + "1" * 50)
    assert mcnemar(ours, theirs) == pytest.approx(binomtest(2, 11, 0.5).pvalue)
    assert mcnemar(ours, theirs) == mcnemar(theirs, ours)
    assert mcnemar(ours, ours) == 1.0


def test_the_recovered_fraction_is_the_share_of_the_loss_and_its_interval_covers_it() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        difficulty = rng.random(400)
        full, low = difficulty < 0.9, difficulty < 0.5
        mended = low | ((difficulty < 0.9) & (rng.random(400) < 0.6))
        found = recovered_fraction(full, low, mended, seed=seed, resamples=1000)
        by_hand = (mended.mean() - low.mean()) / (full.mean() - low.mean())
        assert found.value == pytest.approx(by_hand)
        covered += found.interval.low <= 0.6 <= found.interval.high
    # Binomial(40, .95) falls below 33 once in three thousand times.
    assert covered >= 33


def test_what_was_not_lost_cannot_come_back() -> None:
    with pytest.raises(ConfigError, match="nothing was lost"):
        recovered_fraction(answers("1100"), answers("1110"), answers("1111"), seed=0)


def test_answers_to_other_problems_are_refused() -> None:
    with pytest.raises(ConfigError, match="same problems"):
        gap(answers("110"), answers("11"))
