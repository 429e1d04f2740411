"""mse: never worse than absmax, near the best scale there is, the same bits everywhere."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libortho.quantizers import absmax, mse
from libortho.quantizers.mse import _sum_last
from libortho.streams.base import dequantise


def squared_error(weight: torch.Tensor, rounded: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    error = (dequantise(*rounded) - weight).double().square()
    return error.view(weight.shape[0], -1, 32).sum(2)


def random_weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), bits=st.sampled_from((2, 3, 4)))
def test_no_group_is_worse_than_with_absmax(seed: int, bits: int) -> None:
    weight = random_weight(4, 96, seed)
    found = squared_error(weight, mse(weight, 32, bits=bits))
    assert bool((found <= squared_error(weight, absmax(weight, 32, bits=bits)) * (1 + 1e-5)).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_scale_is_near_the_best_of_a_finer_search(bits: int) -> None:
    weight = random_weight(16, 32)
    found = squared_error(weight, mse(weight, 32, bits=bits))
    high = 2 ** (bits - 1) - 1
    best = torch.full_like(found, torch.inf)
    for step in torch.linspace(0.1, 1.1, 2000):
        scale = (weight.abs().amax(1, keepdim=True) * step / high).half()
        codes = (weight / scale.float()).round().clamp(-high - 1, high).to(torch.int8)
        best = torch.minimum(best, squared_error(weight, (codes, scale)))
    assert bool((found <= best * 1.05).all())
    assert float(found.sum() / best.sum()) < 1.01


def test_candidates_are_judged_as_they_would_be_stored() -> None:
    """bfloat16 keeps eight bits of a scale: the best before rounding is often another."""
    room = import_module("libortho.quantizers.mse")
    weight = random_weight(256, 32)
    codes, scales = mse(weight, 32, scale_dtype=torch.bfloat16)
    found = squared_error(weight, (codes, scales))
    covering = torch.maximum(weight.amax(1) / 7, weight.amin(1) / -8)
    span = room._LARGEST_FRACTION - room._SMALLEST_FRACTION[4]
    for step in range(room._STEPS + 1):
        fraction = room._LARGEST_FRACTION - span * step / room._STEPS
        scale = (covering * fraction).bfloat16().unsqueeze(1)
        rounded = (weight / scale.float()).round().clamp(-8, 7).to(torch.int8)
        assert bool((found <= squared_error(weight, (rounded, scale)) * (1 + 1e-5)).all())


def test_the_same_bits_for_any_thread_count_and_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(512, 256)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = mse(weight, 128)
        torch.set_num_threads(4)
        four = mse(weight, 128)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(import_module("libortho.quantizers.mse"), "_CHUNK", 256 * 7)
    chunked = mse(weight, 128)
    for other in (four, chunked):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(st.integers(1, 200))
def test_the_sum_in_halves_is_a_sum(length: int) -> None:
    values = torch.arange(float(length)).expand(2, length)
    assert _sum_last(values).tolist() == [length * (length - 1) / 2] * 2


def test_the_sum_in_halves_has_one_order() -> None:
    """1 + (2^24 + -2^24) by halves; left to right the 1 would be lost."""
    values = torch.tensor([2.0**24, 1.0, -(2.0**24), 0.0])
    assert float(_sum_last(values)) == 1.0
