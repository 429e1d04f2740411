"""ADMM finds supports that single scores miss, and never fits worse than its own rounds say."""

from __future__ import annotations

import torch

from libortho import sieve


def problem(seed: int, rows: int = 24, columns: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """A target and strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    scale = torch.arange(1, columns + 1) ** -0.5
    x = torch.randn(512, columns, generator=generator) * scale @ mix
    target = torch.randn(rows, columns, generator=generator)
    return target, sieve.damped(x.T @ x / len(x))


def test_it_keeps_its_budget_and_beats_single_scores() -> None:
    errors = {"admm": 0.0, "impact": 0.0}
    for seed in range(5):
        target, hessian = problem(seed)
        count = target.numel() // 10
        mask, values = sieve.admm(target, hessian, count)
        assert int(mask.sum()) == count
        assert not bool(values[~mask].any())
        errors["admm"] += sieve.output_error(target, values, hessian)
        chosen = sieve.top_k(sieve.impact(target, hessian), count)
        fitted = sieve.refit(target, hessian, chosen)
        errors["impact"] += sieve.output_error(target, fitted, hessian)
    assert errors["admm"] < 0.9 * errors["impact"]


def test_a_target_that_is_sparse_already_is_found() -> None:
    target, hessian = problem(1)
    keep = torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) < 0.05
    target = torch.where(keep, 1 + target.abs(), 0.0)
    mask, values = sieve.admm(target, hessian, int(keep.sum()))
    assert torch.equal(mask, keep)
    torch.testing.assert_close(values, target, rtol=1e-3, atol=1e-3)
