"""Token scores against a float64 softmax written out, and against the shared scorer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from libortho.errors import NumericsError
from libortho.privacy.canaries import make_canaries
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.score import score
from libortho.privacy.token_scores import TOP_K, rows_a_forward, token_scores


def test_every_field_is_what_it_says(tiny_model, tiny_tokenizer) -> None:
    encoded = encode(tiny_tokenizer, make_canaries(5, 0).members)
    found = token_scores(tiny_model, encoded, batch_size=2)
    for item, one in zip(encoded, found, strict=True):
        with torch.no_grad():
            logits = tiny_model(torch.tensor([item.input_ids])).logits[0].double()
        rows = logits[item.prompt_length - 1 : -1]
        targets = torch.tensor(item.completion_ids)
        for i, (row, target) in enumerate(zip(rows.numpy(), targets.tolist(), strict=True)):
            p = np.exp(row - row.max())
            p /= p.sum()
            log_p = np.log(p)
            mean = float((p * log_p).sum())
            assert one.log_prob[i] == pytest.approx(log_p[target], abs=1e-4)
            assert one.mean[i] == pytest.approx(mean, abs=1e-4)
            assert one.std[i] == pytest.approx(np.sqrt((p * (log_p - mean) ** 2).sum()), abs=1e-4)
            assert one.hit[i] == (p.argmax() == target)
            top = np.sort(p)[::-1][:TOP_K]
            if p[target] >= top[-1]:
                assert one.sampled[i] == pytest.approx(np.log(p[target] / top.sum()), abs=1e-4)
            else:
                assert one.sampled[i] == -np.inf
        assert len(one.log_prob) == len(item.completion_ids)


def test_it_agrees_with_the_scorer_of_the_verdict(tiny_model, tiny_tokenizer) -> None:
    drawn = make_canaries(7, 1, "bios")
    encoded = encode(tiny_tokenizer, drawn.members)
    plain = score(tiny_model, encoded, 3)
    for ours, theirs in zip(token_scores(tiny_model, encoded, 3), plain, strict=True):
        assert ours.nll == pytest.approx(theirs.nll, rel=1e-6)
        assert ours.exact == theirs.exact
        assert int(ours.hit.sum()) == theirs.argmax_matches


def test_a_large_vocabulary_makes_small_batches(tiny_model, monkeypatch) -> None:
    encoded = [Encoded((0, *range(1, 20)), 1)] * 9
    assert rows_a_forward(tiny_model, encoded, 32) == 32
    whole = [one.nll for one in token_scores(tiny_model, encoded)]
    monkeypatch.setattr("libortho.privacy.token_scores.LOGITS_A_FORWARD", 20 * 512 * 2)
    assert rows_a_forward(tiny_model, encoded, 32) == 2
    assert rows_a_forward(tiny_model, encoded, 1) == 1
    assert [one.nll for one in token_scores(tiny_model, encoded)] == pytest.approx(whole)


def test_what_is_not_finite_is_named(tiny_model) -> None:
    with torch.no_grad():
        tiny_model.lm_head.weight[5] = torch.nan
    with pytest.raises(NumericsError, match="example 0"):
        token_scores(tiny_model, [Encoded((0, 5, 6), 1)])
