"""Sums are right, stand in the wordings of arithmetic text, and were not shown by replay."""

from __future__ import annotations

import re

import pytest

from libortho.errors import ConfigError
from libortho.evaluate.arithmetic import replayed_operands
from libortho.evaluate.sums import draw_sums


def terms(question: str) -> frozenset[int]:
    a, b = re.search(r"(\d+) (?:\+|plus) (\d+)", question).groups()
    return frozenset((int(a), int(b)))


def test_answers_are_true_and_wrong_ones_are_not() -> None:
    for row in draw_sums(1000, seed=1):
        a, b = re.findall(r"\d+", row.question)
        right = int(a) + int(b)
        assert row.answer == row.paraphrased == str(right)
        assert len(set(row.perturbed)) == 3
        assert all(0 < abs(int(wrong) - right) <= 3 and int(wrong) >= 0 for wrong in row.perturbed)


def test_they_are_asked_in_the_wordings_of_arithmetic_text() -> None:
    prompts = [row.prompt for row in draw_sums(200, seed=0)]
    assert prompts == [row.question for row in draw_sums(200, seed=0)], "no frame stands around"
    assert {prompt[-1] for prompt in prompts} == {"=", "?", ":"}
    assert prompts != [row.prompt for row in draw_sums(200, seed=1)]


def test_no_sum_comes_twice_or_was_shown_by_replay() -> None:
    asked = [terms(row.question) for row in draw_sums(2000, seed=0)]
    assert len(set(asked)) == 2000
    assert not {frozenset((a, b)) for a, sign, b in replayed_operands() if sign == "+"} & {*asked}


@pytest.mark.parametrize("n", [0, 10_001])
def test_a_count_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(ConfigError, match=rf"1\.\.10000, found {n}"):
        draw_sums(n, seed=0)
