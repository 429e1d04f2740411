"""Scores and the choice of the best; pursuit against the choice in one go."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libortho.errors import ConfigError, NumericsError
from libortho.sieve import (
    budget,
    contrast,
    damped,
    impact,
    obs_impact,
    output_error,
    pursue,
    refit,
    top_k,
)


@given(
    values=st.lists(st.integers(0, 4), min_size=1, max_size=24),
    count=st.integers(0, 30),
)
@settings(deadline=None)
def test_top_k_takes_the_highest_and_of_ties_the_first(values: list[int], count: int) -> None:
    score = torch.tensor(values, dtype=torch.float32)[None]
    order = sorted(range(len(values)), key=lambda place: (-values[place], place))
    found = top_k(score, count)
    assert found.shape == score.shape
    assert found[0].nonzero().flatten().tolist() == sorted(order[:count])


def test_top_k_counts_over_the_whole_matrix_in_row_order() -> None:
    score = torch.tensor([[1.0, 5.0, 1.0], [4.0, 1.0, 3.0]])
    assert top_k(score, 3).tolist() == [[False, True, False], [True, False, True]]
    assert top_k(score, 4).tolist() == [[True, True, False], [True, False, True]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_an_error(value: float) -> None:
    with pytest.raises(NumericsError, match="not finite"):
        top_k(torch.tensor([[1.0, value]]), 1)


def test_impact_is_the_output_energy_of_an_entry_alone() -> None:
    x, target = torch.randn(50, 6), torch.randn(4, 6)
    hessian = x.T @ x
    found = impact(target, hessian)
    for row in range(4):
        for column in range(6):
            alone = torch.zeros_like(target)
            alone[row, column] = target[row, column]
            expected = (x @ alone.T).square().sum()
            assert float(found[row, column]) == pytest.approx(float(expected), rel=1e-4)


def test_obs_impact_is_the_loss_after_the_others_have_adapted() -> None:
    x, target = torch.randn(50, 6), torch.randn(4, 6)
    hessian = damped(x.T @ x)
    found = obs_impact(target, hessian)
    whole = float(((target @ hessian) * target).sum())
    for row in range(4):
        for column in range(6):
            mask = torch.ones(4, 6, dtype=torch.bool)
            mask[row, column] = False
            lost = output_error(target, refit(target, hessian, mask), hessian) * whole
            assert float(found[row, column]) == pytest.approx(lost, rel=1e-2, abs=1e-3)


def test_contrast_prefers_what_only_the_private_data_pulls() -> None:
    private = torch.tensor([[4.0, 4.0, 0.0, 1.0]])
    public = torch.tensor([[0.0, 9.0, 0.0, 0.0]])
    found = contrast(private, public, damping=0.1)
    ridge = 0.1 * 9 / 4
    expected = torch.tensor([[2 / ridge, 2 / (9 + ridge), 0.0, 1 / ridge]])
    torch.testing.assert_close(found, expected)
    assert top_k(found, 2).tolist() == [[True, False, False, True]]
    with pytest.raises(NumericsError):
        top_k(contrast(private, torch.zeros(1, 4)), 1)


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    density=st.floats(0.001, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_budgets_spend_the_density(sizes: list[int], density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    named = {f"layer{place}": size for place, size in enumerate(sizes)}
    scores = {name: torch.rand(1, size, generator=generator) for name, size in named.items()}
    uniform = budget(named, density, {}, "uniform")
    assert uniform == {name: round(size * density) for name, size in named.items()}
    shared = budget(named, density, scores, "global")
    assert sum(shared.values()) == round(sum(sizes) * density)
    # Choosing so many in each matrix is choosing the best of all matrices together.
    chosen = [scores[name][top_k(scores[name], count)] for name, count in shared.items()]
    left = [scores[name][~top_k(scores[name], count)] for name, count in shared.items()]
    if torch.cat(chosen).numel() and torch.cat(left).numel():
        assert float(torch.cat(chosen).min()) >= float(torch.cat(left).max())


@pytest.mark.parametrize("density", [0, -0.1, 1.1, math.nan, math.inf])
def test_densities_out_of_range_are_refused(density: float) -> None:
    with pytest.raises(ConfigError, match=r"expected a number in \(0, 1\]"):
        budget({"a": 4}, density, {}, "uniform")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_pursuit_is_never_worse_than_impact_of_equal_count(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    columns = 48
    mixing = torch.eye(columns) + 0.2 * torch.randn(columns, columns, generator=generator)
    x = torch.randn(200, columns, generator=generator) @ mixing
    hessian = damped(x.T @ x / len(x))
    target = torch.randn(32, columns, generator=generator)
    count = round(target.numel() * share)
    mask, values = pursue(target, hessian, count)
    assert int(mask.sum()) == count
    assert not bool(values[~mask].any())
    assert torch.equal(values, refit(target, hessian, mask))
    chosen = top_k(impact(target, hessian), count)
    plain = output_error(target, refit(target, hessian, chosen), hessian)
    # Equal only to rounding where both choose alike.
    assert output_error(target, values, hessian) <= plain + 1e-5


@pytest.mark.parametrize("count", [0, 1, 5, 12])
@pytest.mark.parametrize("rounds", [1, 6, 20])
def test_pursuit_takes_as_many_as_asked(count: int, rounds: int) -> None:
    hessian = damped(torch.eye(4))
    mask, _ = pursue(torch.randn(3, 4), hessian, count, rounds)
    assert int(mask.sum()) == count


def test_pursuit_of_uncorrelated_inputs_is_impact() -> None:
    generator = torch.Generator().manual_seed(0)
    hessian = torch.diag(torch.rand(8, generator=generator) + 0.5)
    target = torch.randn(6, 8, generator=generator)
    mask, values = pursue(target, hessian, 12)
    assert torch.equal(mask, top_k(impact(target, hessian), 12))
    torch.testing.assert_close(values, target * mask)
