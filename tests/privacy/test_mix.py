"""A training mix shows every canary exactly as often as asked, evenly over the run."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libortho.errors import ConfigError
from libortho.privacy.mix import STRATA, halves, strata, training_mix


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    steps=st.integers(1, 60),
    exposures=st.lists(st.integers(1, 80), min_size=1, max_size=12),
)
def test_exposures_are_exact_and_even(seed: int, steps: int, exposures: list[int]) -> None:
    mix = list(training_mix(7, exposures, steps=steps, batch=5, seed=seed))
    assert len(mix) == steps
    shown = Counter(canary for step in mix for canary in step.canaries)
    assert [shown[i] for i in range(len(exposures))] == exposures
    for canary, times in enumerate(exposures):
        half = sum(step.canaries.count(canary) for step in mix[: steps // 2])
        assert abs(half - times * (steps // 2) / steps) <= 1
    again = training_mix(7, exposures, steps=steps, batch=5, seed=seed)
    assert [step.canaries for step in again] == [step.canaries for step in mix]


def test_public_windows_pass_in_full_before_any_repeats() -> None:
    mix = training_mix(10, [1], steps=6, batch=5, seed=3)
    seen = [index for step in mix for index in step.windows.tolist()]
    for start in range(0, 30, 10):
        assert sorted(seen[start : start + 10]) == list(range(10))


def test_members_are_spread_over_the_strata() -> None:
    assert strata(7) == [*STRATA, 1, 4]
    assert Counter(strata(200)) == dict.fromkeys(STRATA, 40)


@pytest.mark.parametrize(("pool", "exposures", "steps"), [(0, [1], 1), (1, [0], 1), (1, [1], 0)])
def test_counts_must_be_positive(pool: int, exposures: list[int], steps: int) -> None:
    with pytest.raises(ConfigError):
        next(training_mix(pool, exposures, steps=steps, batch=1, seed=0))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shown=st.lists(st.sampled_from(STRATA), min_size=1, max_size=40),
)
def test_halves_hold_every_stratum_alike(seed: int, shown: list[int]) -> None:
    first, second = halves(shown, seed)
    assert sorted(first + second) == list(range(len(shown)))
    assert 0 <= len(first) - len(second) <= 1
    counts = [Counter(shown[index] for index in half) for half in (first, second)]
    assert all(abs(counts[0][one] - counts[1][one]) <= 1 for one in STRATA)
    assert halves(shown, seed) == (first, second)


def test_halves_are_drawn_by_the_seed() -> None:
    """Members taking the strata in turn, every other one would hold every other stratum."""
    assert len({tuple(halves(strata(40, (16, 64)), seed)[0]) for seed in range(4)}) == 4
