"""Pruning against the formulas, and against what single removals cost."""

from __future__ import annotations

import torch

from libortho import sieve


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 160, generator=generator) * torch.arange(1, 161) ** -0.4
    x[:, 1:] += 0.7 * x[:, :-1]
    return torch.randn(24, 160, generator=generator), sieve.damped(x.T @ x / len(x))


def error(weight: torch.Tensor, pruned: torch.Tensor, hessian: torch.Tensor) -> float:
    return sieve.output_error(weight, pruned, hessian)


def test_wanda_removes_the_least_of_every_row() -> None:
    weight, hessian = problem()
    pruned = sieve.wanda(weight, hessian, 0.25)
    removed = pruned == 0
    assert removed.sum(1).tolist() == [40] * 24
    score = weight.abs() * hessian.diagonal().sqrt()
    assert bool(
        (
            score.masked_fill(~removed, 0).amax(1) <= score.masked_fill(removed, torch.inf).amin(1)
        ).all()
    )
    assert torch.equal(pruned[~removed], weight[~removed])


def test_sparsegpt_makes_up_for_what_it_removes() -> None:
    weight, hessian = problem()
    pruned = sieve.sparsegpt(weight, hessian, 0.5)
    count = int((pruned == 0).sum())
    assert count == round(24 * 128 * 0.5) + round(24 * 32 * 0.5)
    silent = torch.where(pruned == 0, 0.0, weight)
    assert error(weight, pruned, hessian) < 0.9 * error(weight, silent, hessian)
    assert error(weight, pruned, hessian) < error(
        weight, sieve.wanda(weight, hessian, 0.5), hessian
    )


def test_without_correlations_sparsegpt_changes_nothing_else() -> None:
    weight, _ = problem()
    pruned = sieve.sparsegpt(weight, torch.eye(160), 0.25)
    kept = pruned != 0
    torch.testing.assert_close(pruned[kept], weight[kept])
