"""The curvature edit against a search that lists every pair of directions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libortho.errors import ConfigError, NumericsError
from libortho.sieve.kfac import keep_curved, threshold

SIZES = st.lists(st.floats(0, 10), min_size=1, max_size=12).filter(
    lambda values: max(values) > 1e-3
)


def second_moment(size: int, seed: int, rows: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, size + 1) ** -0.7
    x = torch.randn(rows, size, generator=generator) * scale
    return x.T @ x / rows


@given(lam=SIZES, mu=SIZES, share=st.floats(0.05, 1))
@settings(deadline=None, max_examples=200)
def test_the_threshold_is_the_largest_that_holds_the_share(lam, mu, share) -> None:
    one, other = (torch.tensor(values, dtype=torch.float64) for values in (lam, mu))
    pairs = torch.outer(one, other).flatten()
    tau = threshold(one, other, share)
    whole = float(pairs.sum())
    assert float(pairs[pairs >= tau].sum()) >= share * whole * (1 - 1e-9)
    above = pairs[pairs > tau * (1 + 1e-9)]
    # One pair fewer does not hold it any more.
    assert float(above.sum()) <= share * whole * (1 + 1e-9)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_it_keeps_the_directions_of_highest_curvature(share: float) -> None:
    inputs, gradients = second_moment(6, 1), second_moment(5, 2)
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    mu, v = torch.linalg.eigh(inputs.double())
    lam, u = torch.linalg.eigh(gradients.double())
    pairs = sorted(
        ((float(lam[i] * mu[j]), i, j) for i in range(5) for j in range(6)), reverse=True
    )
    total, held, expected = sum(pair[0] for pair in pairs), 0.0, torch.zeros(5, 6).double()
    for curvature, i, j in pairs:
        if held >= share * total:
            break
        held += curvature
        direction = torch.outer(u[:, i], v[:, j])
        expected += (direction * weight.double()).sum() * direction
    found = keep_curved(weight, inputs, gradients, share)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, weight, atol=1e-2)


def test_everything_kept_is_the_weight() -> None:
    weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    kept = keep_curved(weight, second_moment(4, 1), second_moment(8, 2), 1.0)
    torch.testing.assert_close(kept, weight, rtol=1e-4, atol=1e-4)


def test_factors_that_say_nothing_are_errors() -> None:
    weight, factor = torch.ones(2, 2), torch.eye(2)
    with pytest.raises(NumericsError, match="gradients"):
        keep_curved(weight, factor, torch.zeros(2, 2), 0.9)
    with pytest.raises(NumericsError, match="inputs"):
        keep_curved(weight, torch.full((2, 2), torch.nan), factor, 0.9)
    with pytest.raises(ConfigError, match=r"1\.5"):
        keep_curved(weight, factor, factor, 1.5)
