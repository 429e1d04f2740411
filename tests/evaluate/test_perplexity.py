"""The perplexity protocol against the definition."""

from __future__ import annotations

import math

import pytest
import torch

from libortho.errors import ConfigError, NumericsError
from libortho.evaluate.perplexity import (
    distance,
    nll_of_logits,
    perplexity,
    token_nll,
    window_batch,
)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_token_nll_equals_the_definition(tiny_model, batch_size: int | None) -> None:
    ids = torch.randint(512, (4, 20), generator=torch.Generator().manual_seed(0))
    found = token_nll(tiny_model, ids, batch_size)
    assert found.shape == (4, 19)
    assert found.dtype == torch.float32
    for row, window in zip(found, ids, strict=True):
        for position in range(1, 20):
            with torch.no_grad():
                logits = tiny_model(window[None, :position]).logits[0, -1].double()
            expected = -torch.log_softmax(logits, -1)[window[position]].item()
            assert row[position - 1].item() == pytest.approx(expected, abs=2e-5)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    ids = torch.randint(7, (3, 10))
    nll = nll_of_logits(torch.full((3, 10, 7), 2.5), ids)
    assert perplexity(nll) == pytest.approx(7, rel=1e-6)


def test_float32_is_reached_before_the_softmax() -> None:
    logits = torch.tensor([[[20.0, 20.125, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.bfloat16)
    expected = math.log(1 + math.exp(0.125) + math.exp(-20.0))
    nll = nll_of_logits(logits, torch.tensor([[0, 0]]))
    assert nll.item() == pytest.approx(expected, abs=1e-6)


def test_perplexity_sums_in_float64() -> None:
    assert perplexity(torch.full((1000, 1001), 3.3)) == pytest.approx(
        math.exp(torch.tensor(3.3).item()), rel=1e-12
    )


def test_distance_is_symmetric_and_needs_the_same_tokens() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    assert distance(a, b) == distance(b, a) == pytest.approx(1.5)
    assert distance(a, a) == 0
    with pytest.raises(ConfigError):
        distance(a, b[:, :1])


def test_nan_is_an_error_that_names_the_window(tiny_model) -> None:
    ids = torch.zeros(3, 8, dtype=torch.int64)
    ids[1] = 5
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight[5] = math.nan
    tiny_model.lm_head.weight = torch.nn.Parameter(torch.randn(512, 128))
    with pytest.raises(NumericsError, match=r"windows \[1\]"):
        token_nll(tiny_model, ids)


def test_a_forward_stays_small() -> None:
    assert window_batch(512, 8192) == 8
    assert window_batch(4096, 128_256) == 1
