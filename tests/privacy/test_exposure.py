"""Exposure on laws that are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import log_ndtr

from libortho.errors import ConfigError, NumericsError
from libortho.privacy.canaries import Canary, make_canaries
from libortho.privacy.encode import encode
from libortho.privacy.exposure import (
    NULL_MEAN_BITS,
    exposure_against,
    exposure_sampled,
    skew_normal_exposure,
    skew_normal_log_cdf,
)
from libortho.privacy.score import score


def test_rank_formula() -> None:
    controls = [1.0, 2.0, 3.0]
    assert exposure_against([0.5, 1.5, 3.5], controls) == pytest.approx([2.0, 1.0, 0.0])
    assert exposure_against([2.0], controls) == pytest.approx([math.log2(4 / 3)])
    assert exposure_against([-1.0], [0.0] * 200) == pytest.approx([math.log2(201)])


def test_the_null_law_has_mean_1_443_bits() -> None:
    rng = np.random.default_rng(0)
    controls = rng.normal(size=20_000)
    bits = exposure_against(rng.normal(size=4_000).tolist(), controls.tolist())
    error = 1 / math.log(2) / math.sqrt(4_000)
    assert np.mean(bits) == pytest.approx(NULL_MEAN_BITS, abs=4 * error)
    assert stats.kstest(bits, stats.expon(scale=NULL_MEAN_BITS).cdf).pvalue > 1e-3


def test_skew_normal_exposure_of_a_normal_law() -> None:
    """For normal candidates the exposure at z is -log2 Phi(z), in the tail too."""
    candidates = stats.norm.ppf((np.arange(1000) + 0.5) / 1000, loc=70, scale=3)
    for z in (-3.0, -1.0, 0.0, 2.0):
        expected = -log_ndtr(z) / math.log(2)
        found = skew_normal_exposure(70 + 3 * z, candidates.tolist(), 100)
        assert found == pytest.approx(expected, rel=0.12, abs=0.05)
    assert skew_normal_exposure(1.0, candidates.tolist(), 66.4) == 66.4


@pytest.mark.parametrize("shape", [-4.0, -0.7, 0.0, 1.5, 6.0])
def test_log_cdf_agrees_with_scipy_where_scipy_is_accurate(shape: float) -> None:
    for z in (-2.0, -0.5, 0.0, 1.0, 3.0):
        expected = integrate.quad(
            lambda t: stats.skewnorm.pdf(t, shape), -40, z, epsabs=1e-14, limit=400, points=[z - 3]
        )[0]
        if expected > 1e-9:
            assert math.exp(skew_normal_log_cdf(z, shape)) == pytest.approx(expected, rel=1e-5)


def test_log_cdf_in_the_deep_tail() -> None:
    for z in (-8.0, -25.0, -60.0):
        assert skew_normal_log_cdf(z, 0.0) == pytest.approx(log_ndtr(z), rel=1e-6)
    # For shape a > 0 the tail falls like a normal one with precision 1 + a^2.
    assert skew_normal_log_cdf(-20.0, 3.0) == pytest.approx(-0.5 * 400 * 10, rel=0.01)
    assert math.isfinite(skew_normal_log_cdf(-60.0, 12.0))
    assert skew_normal_log_cdf(50.0, 2.0) == pytest.approx(0.0, abs=1e-6)


def test_cached_prompt_gives_the_scores_of_whole_sequences(tiny_model, tiny_tokenizer) -> None:
    drawn = make_canaries(2, 0)
    candidates = [drawn.candidates(canary, 30) for canary in drawn.members]
    found = exposure_sampled(tiny_model, tiny_tokenizer, drawn.members, candidates, batch_size=7)
    for canary, others, result in zip(drawn.members, candidates, found, strict=True):
        rows = [canary] + [
            type(canary)(f"{i}", canary.prompt, o, 1.0) for i, o in enumerate(others)
        ]
        nll = [s.nll for s in score(tiny_model, encode(tiny_tokenizer, rows))]
        assert result.nll == pytest.approx(nll[0], abs=1e-3)
        assert result.candidate_mean == pytest.approx(np.mean(nll[1:]), abs=1e-3)
        assert result.candidate_std == pytest.approx(np.std(nll[1:]), abs=1e-3)
        assert result.candidates == 30
        rank = 1 + sum(value <= nll[0] for value in nll[1:])
        assert result.empirical_bits == pytest.approx(math.log2(31 / rank))


def test_candidates_of_unequal_length_are_padded(tiny_model, tiny_tokenizer) -> None:
    drawn = make_canaries(1, 0)
    others = [f" {10**i}" for i in range(25)]
    (result,) = exposure_sampled(tiny_model, tiny_tokenizer, drawn.members, [others], batch_size=26)
    rows = [type(drawn.members[0])(f"{o}", drawn.members[0].prompt, o, 1.0) for o in others]
    nll = [s.nll for s in score(tiny_model, encode(tiny_tokenizer, rows), 1)]
    assert result.candidate_mean == pytest.approx(np.mean(nll), abs=1e-3)


def test_a_memorised_secret_is_exposed(tiny_model, tiny_tokenizer) -> None:
    """A few steps on one canary bring its exposure from noise to the ceiling."""
    drawn = make_canaries(1, 4)
    canary = drawn.members[0]
    candidates = [drawn.candidates(canary, 100)]
    before = exposure_sampled(tiny_model, tiny_tokenizer, [canary], candidates)[0]
    ids = torch.tensor([encode(tiny_tokenizer, [canary])[0].input_ids])
    optimiser = torch.optim.Adam(tiny_model.parameters(), lr=3e-3)
    for _ in range(15):
        optimiser.zero_grad()
        tiny_model(ids, labels=ids).loss.backward()
        optimiser.step()
    after = exposure_sampled(tiny_model, tiny_tokenizer, [canary], candidates)[0]
    assert before.empirical_bits < 6
    assert after.empirical_bits == pytest.approx(math.log2(101))
    assert after.skew_normal_bits > 12


def test_what_cannot_be_ranked_is_refused(tiny_model, tiny_tokenizer) -> None:
    with pytest.raises(ConfigError):
        exposure_against([1.0], [])
    with pytest.raises(NumericsError):
        exposure_against([math.nan], [1.0])
    with pytest.raises(ConfigError, match="at least 20"):
        skew_normal_exposure(1.0, [1.0, 2.0], 10)
    with pytest.raises(NumericsError, match="same"):
        skew_normal_exposure(1.0, [2.0] * 50, 10)
    merging = Canary("a", "a prompt that ends in a space ", "1", 60.0)
    with pytest.raises(ConfigError, match="change the tokens"):
        exposure_sampled(tiny_model, tiny_tokenizer, [merging], [["and"] * 30])
