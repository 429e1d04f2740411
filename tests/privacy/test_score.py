"""The scorer against a naive loop, and teacher-forced argmax against real decoding."""

from __future__ import annotations

import math

import pytest
import torch

from libortho.errors import NumericsError
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.private_set import Example
from libortho.privacy.score import score

EXAMPLES = [
    Example("a", "The code is", " 1234"),
    Example("b", "", "a whole text"),
    Example("c", "A much longer prompt stands here, before the", " secret"),
    Example("d", "x", " 99999999"),
    Example("e", "Another", " one that is the last"),
]


def naive(model, item: Encoded) -> tuple[float, int, int]:
    """One token at a time, in float64 from the logits on."""
    total, hits = 0.0, 0
    for position in range(item.prompt_length, len(item.input_ids)):
        with torch.no_grad():
            logits = model(torch.tensor([item.input_ids[:position]])).logits[0, -1].double()
        total -= torch.log_softmax(logits, dim=-1)[item.input_ids[position]].item()
        hits += int(logits.argmax()) == item.input_ids[position]
    return total, len(item.input_ids) - item.prompt_length, hits


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_scores_equal_a_naive_loop(tiny_model, tiny_tokenizer, batch_size: int) -> None:
    encoded = encode(tiny_tokenizer, EXAMPLES)
    for item, found in zip(encoded, score(tiny_model, encoded, batch_size), strict=True):
        nll, tokens, hits = naive(tiny_model, item)
        # Logits here are below 8 and sum at most 128 products: 1e-5 a token is generous in fp32.
        assert found.nll == pytest.approx(nll, abs=1e-5 * tokens)
        assert (found.tokens, found.argmax_matches) == (tokens, hits)
        assert found.exact == (hits == tokens)


def test_exact_is_what_greedy_decoding_recites(tiny_model, tiny_tokenizer) -> None:
    """Completions that generation produced are exact, and no longer so with one id changed."""
    prompts = [tuple(tiny_tokenizer(e.prompt)["input_ids"]) for e in EXAMPLES]
    recited, altered = [], []
    for prompt in prompts:
        produced = tiny_model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=12,
            do_sample=False,
            num_beams=1,
            eos_token_id=-1,
            pad_token_id=0,
        )[0].tolist()
        recited.append(Encoded(tuple(produced), len(prompt)))
        place = len(prompt) + 5
        changed = [*produced[:place], (produced[place] + 1) % 512, *produced[place + 1 :]]
        altered.append(Encoded(tuple(changed), len(prompt)))
    assert all(found.exact for found in score(tiny_model, recited))
    assert not any(found.exact for found in score(tiny_model, altered))


def test_padding_does_not_reach_the_sum(tiny_model, tiny_tokenizer) -> None:
    encoded = encode(tiny_tokenizer, EXAMPLES)
    alone = score(tiny_model, encoded[:1])[0]
    beside = score(tiny_model, [encoded[0], encoded[2]])[0]
    assert beside.tokens == alone.tokens
    assert beside.nll == pytest.approx(alone.nll, abs=1e-4)


def test_logits_of_half_precision_are_summed_in_float32(tiny_model, tiny_tokenizer) -> None:
    encoded = encode(tiny_tokenizer, EXAMPLES)
    full = score(tiny_model, encoded)
    half = score(tiny_model.to(torch.bfloat16), encoded)
    for a, b in zip(full, half, strict=True):
        # bfloat16 logits below 8 are off by up to 2^-6 each, and the hidden state by more.
        assert b.nll == pytest.approx(a.nll, rel=0.03)
        assert b.nll != pytest.approx(round(b.nll * 8) / 8, abs=1e-6)


def test_nan_is_an_error_that_names_the_examples(tiny_model, tiny_tokenizer) -> None:
    with torch.no_grad():
        tiny_model.model.norm.weight[0] = math.nan
    with pytest.raises(NumericsError, match=r"\[0, 1, 2, 3, 4\]"):
        score(tiny_model, encode(tiny_tokenizer, EXAMPLES))


def test_progress_reaches_the_total(tiny_model, tiny_tokenizer) -> None:
    seen: list[tuple[int, int]] = []
    encoded = encode(tiny_tokenizer, EXAMPLES)
    score(
        tiny_model, encoded, 2, progress=lambda stage, done, total, info: seen.append((done, total))
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
