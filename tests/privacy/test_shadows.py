"""Shadow runs: every example in exactly half of them, and no ratio on too few."""

from __future__ import annotations

import numpy as np
import pytest

from libortho.errors import ConfigError
from libortho.privacy.canaries import make_canaries
from libortho.privacy.shadows import Shadows, halves


def test_each_example_is_in_exactly_half_of_the_runs() -> None:
    everyone = make_canaries(20, 0)
    examples = [*everyone.members, *everyone.controls]
    runs = halves(examples, 16, seed=0)
    assert len(runs) == 16
    for example in examples:
        assert sum(example in run for run in runs) == 8
    assert runs == halves(examples, 16, seed=0)
    assert {len(run) for run in runs} != {20}, "the halves must be random, not complementary blocks"


@pytest.mark.parametrize("runs", [15, 14, 17])
def test_too_few_or_odd_runs_are_refused(runs: int) -> None:
    with pytest.raises(ConfigError):
        halves(make_canaries(3, 0).members, runs, seed=0)


def test_an_example_that_is_always_inside_is_refused() -> None:
    inside = np.ones((16, 3), dtype=bool)
    inside[:8] = False
    Shadows(np.zeros((16, 3)), inside)
    inside[:, 1] = True
    with pytest.raises(ConfigError, match="1 of 3"):
        Shadows(np.zeros((16, 3)), inside)
