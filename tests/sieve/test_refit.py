"""Least squares on a support, against a naive solver in float64, one row at a time."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from libortho.sieve import damped, output_error, refit

module = importlib.import_module("libortho.sieve.refit")
EPS = 2.0**-24


def moments(columns: int, samples: int, seed: int) -> Tensor:
    """Second moments of correlated inputs, damped; few samples leave it singular without."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, columns, generator=generator)
    x = x @ (torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator))
    return damped(x.T @ x / samples)


def naive(target: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    """argmin over p on the support of ‖Rᵀ(t − p)‖², H = R Rᵀ, by QR, in float64."""
    root = torch.linalg.cholesky(hessian.double()).T
    values = torch.zeros_like(target, dtype=torch.float64)
    for row in range(target.shape[0]):
        support = mask[row].nonzero().flatten()
        if len(support):
            right = root @ target[row].double()[:, None]
            values[row, support] = torch.linalg.lstsq(root[:, support], right).solution[:, 0]
    return values


def check(target: Tensor, hessian: Tensor, mask: Tensor) -> None:
    found = refit(target, hessian, mask)
    expected = naive(target, hessian, mask)
    assert found.dtype == target.dtype
    assert not bool(found[~mask].any())
    # Solving a K x K system in fp32 errs by about K eps cond(H) relative to the solution; any
    # H_SS is conditioned no worse than H. The right-hand side H t carries one more such error.
    bound = 8 * hessian.shape[0] * EPS * float(torch.linalg.cond(hessian.double()))
    scale = expected.norm(dim=1) + target.double().norm(dim=1)
    error = (found.double() - expected).norm(dim=1)
    assert bool((error <= bound * scale).all()), float((error / scale).max())
    assert bound < 0.1


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 12),
    samples=st.integers(1, 40),
    seed=st.integers(0, 2**20),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)
@settings(deadline=None, max_examples=150)
def test_every_row_is_the_least_squares_solution(rows, columns, samples, seed, density) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < density
    # An empty row and a full one beside the others.
    mask[0] = False
    mask[-1] = True
    check(torch.randn(rows, columns, generator=generator), moments(columns, samples, seed), mask)


@pytest.mark.parametrize("chunk", [1, 4 * 5 * 5 * 3, 2**28])
def test_chunks_do_not_matter(monkeypatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(40, 16, generator=generator) < torch.rand(40, 1, generator=generator)
    check(torch.randn(40, 16, generator=generator), moments(16, 60, 0), mask)


def test_a_full_support_brings_the_target_back() -> None:
    target, hessian = torch.randn(5, 8), moments(8, 30, 1)
    found = refit(target, hessian, torch.ones(5, 8, dtype=torch.bool))
    torch.testing.assert_close(found, target, rtol=1e-3, atol=1e-3)
    assert output_error(target, found, hessian) < 1e-6
    nothing = refit(target, hessian, torch.zeros(5, 8, dtype=torch.bool))
    assert not bool(nothing.any())
    assert output_error(target, nothing, hessian) == 1


def test_it_beats_the_targets_own_values() -> None:
    """Plain truncation ignores what the inputs have in common."""
    generator = torch.Generator().manual_seed(3)
    target, hessian = torch.randn(20, 16, generator=generator), moments(16, 40, 3)
    mask = torch.rand(20, 16, generator=generator) < 0.3
    fitted = refit(target, hessian, mask)
    assert output_error(target, fitted, hessian) < output_error(target, target * mask, hessian)


def test_output_error_is_the_share_of_lost_output_energy() -> None:
    x, target, values = torch.randn(30, 8), torch.randn(5, 8), torch.randn(5, 8)
    lost = (x @ (target - values).T).square().sum() / (x @ target.T).square().sum()
    found = output_error(target, values, x.T @ x)
    assert found == pytest.approx(float(lost), rel=1e-4)
    assert output_error(torch.zeros(5, 8), torch.zeros(5, 8), x.T @ x) == 0


def test_damping_adds_a_share_of_the_mean_diagonal() -> None:
    hessian = torch.diag(torch.tensor([1.0, 3.0]))
    assert torch.equal(damped(hessian, 0.5), torch.diag(torch.tensor([2.0, 4.0])))
    assert bool(torch.isfinite(torch.linalg.cholesky(damped(torch.zeros(4, 4)) * 2.0**100)).all())
