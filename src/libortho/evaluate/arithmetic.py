"""Arithmetic by exact match: the ability that rounding weights to few bits costs first."""

from __future__ import annotations

import json
import operator
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from libortho import progress as _progress
from libortho.errors import ConfigError, FormatError
from libortho.privacy.greedy import greedy
from libortho.privacy.private_set import Example
from libortho.privacy.statistics import Interval, clopper_pearson
from libortho.progress import Progress
from libortho.texts import arithmetic

_OPERATIONS = {
    "+": (operator.add, "plus"),
    "-": (operator.sub, "minus"),
    "*": (operator.mul, "times"),
}
_STYLES = ("{a} {sign} {b} =", "What is {a} {word} {b}?", "Question: {a} {word} {b}. Answer:")
_ANSWER = re.compile(r"\s*(-?\d+)")
_OPERANDS = re.compile(r"(\d+) ([-+*]|plus|minus|times) (\d+)")

Operands = tuple[int, str, int]
"""The two numbers of a problem, and between them its sign."""


@dataclass(frozen=True)
class Problem:
    """A question and its answer, an integer in decimal digits."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Accuracy:
    """Share of problems answered exactly.

    Attributes:
        correct: one flag a problem, in order.
        value: their mean.
        interval: Clopper-Pearson.
    """

    correct: tuple[bool, ...]
    value: float
    interval: Interval

    @property
    def n(self) -> int:
        """How many problems were asked."""
        return len(self.correct)


def draw_problems(seed: int) -> Iterator[tuple[Operands, Problem]]:
    """Draw without end, and again and again: + and - on 1 to 3 digits, * on 1 to 2."""
    rng = np.random.default_rng(seed)
    signs = list(_OPERATIONS)
    while True:
        sign = signs[int(rng.integers(len(signs)))]
        most = 2 if sign == "*" else 3
        a, b = (int(rng.integers(10 ** int(rng.integers(1, most + 1)))) for _ in range(2))
        style = _STYLES[int(rng.integers(len(_STYLES)))]
        apply, word = _OPERATIONS[sign]
        prompt = style.format(a=a, b=b, sign=sign, word=word)
        yield (a, sign, b), Problem(prompt, str(apply(a, b)))


def make_problems(n: int, seed: int) -> list[Problem]:
    """Draw n distinct problems in three wordings, none of which the shipped replay text holds.

    Nothing keeps them apart from the training data of a given model, where small problems may
    well occur: compare conditions on them, and give a disjoint file for an absolute figure.

    Raises:
        ConfigError: for more than 10,000 or fewer than 1.
    """
    if not 1 <= n <= 10_000:
        raise ConfigError(f"the number of problems must lie in 1..10000, found {n}")
    replayed = replayed_operands()
    drawn: dict[Operands, Problem] = {}
    for operands, problem in draw_problems(seed):
        if operands not in replayed:
            drawn.setdefault(operands, problem)
        if len(drawn) == n:
            break
    return list(drawn.values())


@cache
def replayed_operands() -> frozenset[Operands]:
    """The operands of the shipped replay text, in whatever wording they stand there."""
    signs = {written: sign for sign, (_, word) in _OPERATIONS.items() for written in (sign, word)}
    found = (_OPERANDS.search(document) for document in arithmetic().documents)
    return frozenset((int(one[1]), signs[one[2]], int(one[3])) for one in found if one)


def as_examples(problems: Sequence[Problem]) -> list[Example]:
    """Problems whose answer is a completion, to be scored teacher forced.

    Then the right answer counts where it is the greedy one; what would follow it is not looked at
    (lm-eval asks so too), while :func:`accuracy` wants the whole number to be right.
    """
    return [
        Example(f"problem-{number}", one.prompt, f" {one.answer}")
        for number, one in enumerate(problems)
    ]


def read_problems(path: str | Path) -> list[Problem]:
    """Read JSONL rows of ``prompt`` and ``answer``; further keys are ignored.

    Raises:
        FormatError: listing every bad line with its number.
    """
    problems: list[Problem] = []
    bad: list[str] = []
    for number, line in enumerate(Path(path).read_text("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            bad.append(f"line {number}: not JSON: {error.msg}")
            continue
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) for key in ("prompt", "answer")
        ):
            bad.append(f"line {number}: expected the strings prompt and answer")
        elif not re.fullmatch(r"-?\d+", row["answer"]):
            bad.append(f"line {number}: the answer is no integer: {row['answer']!r}")
        else:
            problems.append(Problem(row["prompt"], row["answer"]))
    if bad or not problems:
        raise FormatError(f"{path}: " + "\n  ".join(bad or ["no problems"]))
    return problems


def accuracy(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    batch_size: int = 64,
    *,
    steps: int = 12,
    stage: str = "arithmetic",
    progress: Progress = _progress.silent,
) -> Accuracy:
    """Greedy exact match: the first thing the model writes must be the whole answer.

    Prompts of equal length share a batch, so that no padding can change a result.

    Args:
        model: a transformers causal LM; the caller sets alpha.
        tokenizer: its tokenizer; its post-processor's leading token is kept.
        problems: what to ask.
        batch_size: prompts a forward.
        steps: tokens to decode; an answer of six digits with sign and space needs eight.
    """
    by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for index, problem in enumerate(problems):
        ids = tokenizer(problem.prompt)["input_ids"]
        by_length[len(ids)].append((index, ids))
    correct = [False] * len(problems)
    done = 0
    for length in sorted(by_length):
        group = by_length[length]
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            produced = greedy(
                model, torch.tensor([ids for _, ids in batch]), steps, tokenizer.eos_token_id
            )
            for (index, _), row in zip(batch, produced.tolist(), strict=True):
                written = _ANSWER.match(tokenizer.decode(row))
                correct[index] = written is not None and written[1] == problems[index].answer
            done += len(batch)
            progress(stage, done, len(problems), {"correct": sum(correct) / done})
    hits = sum(correct)
    return Accuracy(tuple(correct), hits / len(correct), clopper_pearson(hits, len(correct)))
