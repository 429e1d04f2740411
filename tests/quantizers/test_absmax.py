"""absmax, and the grid that every method rounds to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libortho.errors import ConfigError, NumericsError
from libortho.quantizers import absmax, gptq, mse
from libortho.streams.base import dequantise

DTYPES = (torch.float16, torch.bfloat16)


def random_weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 0.02


def every_method(weight: torch.Tensor, group_size: int, **options) -> list:
    hessian = torch.eye(weight.shape[1])
    return [
        absmax(weight, group_size, **options),
        mse(weight, group_size, **options),
        gptq(weight, hessian, group_size, **options),
    ]


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    exponent=st.integers(-12, 6),
    bits=st.sampled_from((2, 3, 4)),
    dtype=st.sampled_from(DTYPES),
)
def test_absmax_errs_by_half_a_step(seed: int, exponent: int, bits: int, dtype) -> None:
    weight = random_weight(3, 64, seed) * 2.0**exponent
    codes, scales = absmax(weight, 32, bits=bits, scale_dtype=dtype)
    step = scales.float().repeat_interleave(32, dim=1)
    error = (dequantise(codes, scales) - weight).abs()
    # A scale that was rounded down clips the largest weight, by at most 2^(bits-1) of the
    # scale's own rounding error (half a unit in the last place, or the smallest normal).
    slack = 2 ** (bits - 1) * torch.finfo(dtype).eps / 2
    assert bool((error <= step * (0.5 + slack) * (1 + 1e-6)).all())


def test_per_channel_is_one_scale_a_row() -> None:
    weight = random_weight(5, 256)
    codes, scales = absmax(weight, None)
    assert scales.shape == (5, 1)
    repeated, groups = absmax(weight, 256)
    assert torch.equal(codes, repeated)
    assert torch.equal(scales, groups)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_stay_on_the_levels_of_their_bits(bits: int, dtype: torch.dtype) -> None:
    weight = random_weight(16, 256)
    for codes, scales in every_method(weight, 64, bits=bits, scale_dtype=dtype):
        assert codes.dtype == torch.int8
        assert codes.shape == weight.shape
        assert scales.shape == (16, 4)
        assert scales.dtype == dtype
        assert int(codes.min()) == -(2 ** (bits - 1))
        assert int(codes.max()) <= 2 ** (bits - 1) - 1
        assert len(codes.unique()) == 2**bits


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_of_zeros_has_a_normal_scale_and_zero_codes(dtype: torch.dtype) -> None:
    weight = random_weight(4, 128)
    weight[1, 64:] = 0
    for codes, scales in every_method(weight, 64, scale_dtype=dtype):
        assert scales[1, 1] == torch.finfo(dtype).smallest_normal
        assert not codes[1, 64:].any()
        assert bool(torch.isfinite(dequantise(codes, scales)).all())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_poison_is_refused(poison: float) -> None:
    weight = random_weight(4, 128)
    weight[2, 5] = poison
    for method in (absmax, mse, lambda w, g: gptq(w, torch.eye(128), g)):
        with pytest.raises(NumericsError, match="1 numbers that are NaN or Inf"):
            method(weight, 64)


def test_a_scale_that_does_not_fit_is_refused() -> None:
    with pytest.raises(NumericsError, match="does not fit into"):
        absmax(torch.full((1, 32), 1e6), 32, scale_dtype=torch.float16)


def test_options_that_cannot_be_honoured_are_refused() -> None:
    weight = random_weight(4, 128)
    with pytest.raises(ConfigError, match="expected 2, 3 or 4"):
        absmax(weight, 64, bits=5)
    with pytest.raises(ConfigError, match="not divisible"):
        absmax(weight, 96)
    with pytest.raises(ConfigError, match="float32"):
        absmax(weight.double(), 64)
