"""The audited lower bound of ε: by hand, on a mechanism whose ε is known, and where it is blind."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from libortho.errors import ConfigError
from libortho.privacy.epsilon import epsilon_lower_bound


def test_perfect_separation_gives_what_the_counts_allow() -> None:
    found = epsilon_lower_bound([1.0] * 200, [2.0] * 200, delta=0.005)
    low = float(beta.ppf(0.025, 100, 1))
    high = float(beta.isf(0.025, 1, 100))
    assert (found.true_positives, found.false_positives, found.n) == (100, 0, 100)
    assert found.epsilon == pytest.approx(math.log((low - 0.005) / high))


def test_randomised_response_is_not_accused_of_more_than_its_epsilon() -> None:
    """Members say 1 with probability e^ε/(1+e^ε), controls with the rest: exactly (ε, 0)-DP."""
    epsilon, wrong, proved = 1.0, 0, []
    honest = math.exp(epsilon) / (1 + math.exp(epsilon))
    rng = np.random.default_rng(0)
    for _ in range(200):
        members = (rng.random(400) >= honest).astype(float)
        controls = (rng.random(400) < honest).astype(float)
        found = epsilon_lower_bound(members.tolist(), controls.tolist(), delta=0.0)
        wrong += found.epsilon > epsilon
        proved.append(found.epsilon)
    # At most 5% in the long run; Binomial(200, .05) exceeds 19 once in a thousand times.
    assert wrong <= 19
    # And the bound is no trivial one.
    assert np.median(proved) > 0.5


def test_the_threshold_is_not_chosen_on_the_examples_that_are_counted() -> None:
    """The half that chooses is told apart perfectly, the half that counts the other way round."""
    found = epsilon_lower_bound([1.0, 2.0] * 100, [2.0, 1.0] * 100, delta=0.0)
    assert found.threshold == 1.0
    assert (found.true_positives, found.false_positives) == (0, 100)
    assert found.epsilon == 0.0


@pytest.mark.parametrize(
    ("members", "controls", "delta"), [(3, 3, 0.1), (8, 7, 0.1), (8, 8, 1.0), (8, 8, -0.1)]
)
def test_what_cannot_be_audited_is_refused(members: int, controls: int, delta: float) -> None:
    with pytest.raises(ConfigError):
        epsilon_lower_bound([1.0] * members, [2.0] * controls, delta)
