"""GPTQ and the descent after it: the textbook's rule, and an error that only falls."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor

from libortho.errors import ConfigError, NumericsError
from libortho.quantizers import gptq, mse
from libortho.quantizers.descent import descend
from libortho.quantizers.gptq import _order
from libortho.streams.base import dequantise


def correlated(columns: int, seed: int = 0) -> Tensor:
    """E[x xᵀ] of inputs that share a few directions and differ in strength."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    strength = torch.rand(columns, generator=generator) + 0.1
    inputs = torch.randn(4000, columns // 4, generator=generator) @ mixing * strength
    inputs += torch.randn(4000, columns, generator=generator) * 0.5
    return inputs.t() @ inputs / 4000


def random_weight(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def output_error(weight: Tensor, rounded: tuple[Tensor, Tensor], hessian: Tensor) -> Tensor:
    """e H eᵀ of each row."""
    error = (dequantise(*rounded) - weight).double()
    return ((error @ hessian.double()) * error).sum(1)


def textbook(weight: Tensor, hessian: Tensor, scales: Tensor, order: list[int]) -> Tensor:
    """Algorithm 1 of arXiv 2210.17323 in float64: the inverse Hessian, one column at a time."""
    columns = weight.shape[1]
    size = columns // scales.shape[1]
    damped = hessian.double() + 0.01 * hessian.diagonal().double().mean() * torch.eye(columns)
    inverse = torch.linalg.inv(damped[order][:, order])
    upper = torch.linalg.cholesky(inverse, upper=True)
    rest = weight.double()[:, order].clone()
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    for place, column in enumerate(order):
        scale = scales[:, column // size].double()
        code = (rest[:, place] / scale).round().clamp(-8, 7)
        codes[:, column] = code.to(torch.int8)
        error = (rest[:, place] - code * scale) / upper[place, place]
        rest[:, place:] -= error.unsqueeze(1) * upper[place, place:]
    return codes


def test_follows_the_textbook() -> None:
    weight, hessian = random_weight(64, 128), correlated(128)
    codes, scales = gptq(weight, hessian, 32, descents=0)
    order = _order(hessian.diagonal(), 32).flip(0).tolist()
    expected = textbook(weight, hessian, scales, order)
    # float32 against float64: a weight halfway between two levels may fall either way, and what
    # follows in its row is compensated differently.
    assert float((codes != expected).float().mean()) < 0.002
    assert float((codes == expected).all(dim=1).float().mean()) > 0.95


def test_without_correlations_it_is_the_mse_quantiser() -> None:
    weight = random_weight(32, 128)
    expected = mse(weight, 64)
    found = gptq(weight, torch.eye(128), 64, descents=0)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_beats_rounding_alone_and_the_descent_beats_gptq(bits: int) -> None:
    weight, hessian = random_weight(64, 256), correlated(256)
    alone = output_error(weight, mse(weight, 64, bits=bits), hessian).sum()
    plain = output_error(weight, gptq(weight, hessian, 64, bits=bits, descents=0), hessian).sum()
    polished = output_error(weight, gptq(weight, hessian, 64, bits=bits), hessian).sum()
    assert float(plain / alone) < 0.6
    assert float(polished / plain) < 0.95


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_row_gets_worse_by_descending(dtype: torch.dtype) -> None:
    weight, hessian = random_weight(32, 128), correlated(128)
    ridge = 0.01 * float(hessian.diagonal().mean())
    damped = hessian + ridge * torch.eye(128)
    rounded = mse(weight, 32, scale_dtype=dtype)
    before = output_error(weight, rounded, damped)
    for _ in range(3):
        rounded = descend(weight, *rounded, hessian, ridge, passes=1)
        after = output_error(weight, rounded, damped)
        assert bool((after <= before * (1 + 1e-5)).all())
        assert rounded[1].dtype == dtype
        assert int(rounded[0].min()) >= -8
        assert int(rounded[0].max()) <= 7
        before = after


def test_a_row_does_not_depend_on_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunks that bound the memory change nothing but rounding noise in the matmuls."""
    weight, hessian = random_weight(48, 128), correlated(128)
    whole = gptq(weight, hessian, 64)
    monkeypatch.setattr(import_module("libortho.quantizers.gptq"), "_CHUNK", 128 * 16)
    chunked = gptq(weight, hessian, 64)
    assert float((whole[0] != chunked[0]).float().mean()) < 0.01


def test_groups_stay_together_and_the_strongest_come_first() -> None:
    diagonal = torch.tensor([1.0, 2.0, 9.0, 8.0, 3.0, 4.0])
    assert _order(diagonal, 2).tolist() == [0, 1, 4, 5, 3, 2]


def test_the_arguments_are_left_alone() -> None:
    weight, hessian = random_weight(16, 128), correlated(128)
    kept = weight.clone(), hessian.clone()
    gptq(weight, hessian, 64)
    assert torch.equal(weight, kept[0])
    assert torch.equal(hessian, kept[1])


def test_unusable_hessians_are_refused() -> None:
    weight = random_weight(4, 64)
    with pytest.raises(NumericsError, match="Hessian is zero"):
        gptq(weight, torch.zeros(64, 64), 32)
    with pytest.raises(NumericsError, match="not positive definite"):
        gptq(weight, torch.eye(64) - 0.9, 32)
    poisoned = torch.eye(64)
    poisoned[3, 4] = torch.nan
    with pytest.raises(NumericsError, match="holds NaN or Inf"):
        gptq(weight, poisoned, 32)
    with pytest.raises(ConfigError, match="expected a float32 Hessian"):
        gptq(weight, torch.eye(32), 32)


def test_inputs_that_never_fire_are_still_rounded() -> None:
    hessian = correlated(128)
    hessian[5] = 0
    hessian[:, 5] = 0
    codes, scales = gptq(random_weight(8, 128), hessian, 64)
    assert bool(torch.isfinite(dequantise(codes, scales)).all())
    assert bool(codes[:, 5].any())
