"""TOFU's metrics against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from libortho.errors import ConfigError
from libortho.evaluate.forgetting import (
    Answers,
    answers,
    forget_quality,
    model_utility,
    rouge_recall,
    truth_ratio,
)
from libortho.privacy.encode import encode
from libortho.privacy.questions import Question


def with_ratios(*ratios: float) -> Answers:
    return Answers([0.5] * len(ratios), [0.5] * len(ratios), list(ratios))


def test_a_truth_ratio_is_the_mean_of_the_wrong_over_the_right() -> None:
    assert truth_ratio(0.4, [0.1, 0.2, 0.3]) == pytest.approx(0.5)
    one = with_ratios(0.5, 4.0)
    assert one.truth("forget") == [0.5, 0.25]
    assert one.truth("retain") == [0.5, 0.0]


@pytest.mark.parametrize(
    ("written", "wanted", "recall"),
    [
        ("the cat sat on the mat", "The cat sat.", 1.0),
        ("the mat", "the cat sat on the mat", 2 / 6),
        ("mat the", "the mat", 1 / 2),
        ("", "the mat", 0.0),
        ("dog", "the mat", 0.0),
    ],
)
def test_rouge_is_a_recall_over_words(written: str, wanted: str, recall: float) -> None:
    assert rouge_recall(written, wanted) == pytest.approx(recall)


def test_forget_quality_is_the_p_of_two_samples() -> None:
    assert forget_quality(with_ratios(1, 2, 3), with_ratios(1, 2, 3)).p == 1.0
    apart = forget_quality(with_ratios(1, 2, 3, 4), with_ratios(5, 6, 7, 8))
    assert apart.distance == 1.0
    # 2 of the C(8, 4) = 70 orders lie so far apart.
    assert apart.p == pytest.approx(2 / math.comb(8, 4))
    with pytest.raises(ConfigError, match="same questions: 2 and 1"):
        forget_quality(with_ratios(1, 2), with_ratios(1))


def test_utility_is_a_harmonic_mean_that_leaves_the_forget_set_out() -> None:
    found = {
        "forget": Answers([0.0], [0.0], [9.0]),
        "retain": Answers([0.5, 0.5], [1.0, 1.0], [0.5, 0.5]),
        "sums": Answers([0.25], [0.5], [0.75]),
    }
    # 6 / (1/.5 + 1/1 + 1/.5 + 1/.25 + 1/.5 + 1/.25)
    utility = model_utility(found, seed=0)
    assert utility.value == pytest.approx(6 / 15)
    assert utility.interval.low == utility.interval.high == pytest.approx(6 / 15)
    found["sums"] = Answers([0.25], [0.0], [0.75])
    assert model_utility(found, seed=0).value == 0.0


def test_answers_are_probabilities_by_length(
    tiny_model: Any, tiny_tokenizer: Any, memorise: Any
) -> None:
    row = Question("What is it?", "a list of names", "some names", ("a number", "no"))
    sure = encode(tiny_tokenizer, [row.example("x")])
    memorise(tiny_model, sure)
    found = answers(tiny_model, tiny_tokenizer, {"forget": [row], "known": [row]})
    (ids,) = sure
    with torch.no_grad():
        log_probs = tiny_model(torch.tensor([ids.input_ids])).logits.double().log_softmax(-1)[0]
    told = [
        log_probs[place - 1, ids.input_ids[place]].item()
        for place in range(ids.prompt_length, len(ids.input_ids))
    ]
    right = math.exp(sum(told) / len(told))
    assert found["forget"].probability == pytest.approx([right], rel=1e-4)
    assert found["forget"].rouge == [1.0]
    # Of a set that was known before, the share of the right among all answers.
    assert found["known"].probability[0] > 0.5
    assert found["known"].probability[0] != found["forget"].probability[0]
    assert found["known"].truth_ratio == found["forget"].truth_ratio
