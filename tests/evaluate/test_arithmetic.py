"""Problems are right, and answers are matched whole."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from libortho.errors import ConfigError, FormatError
from libortho.evaluate.arithmetic import (
    Problem,
    accuracy,
    as_examples,
    draw_problems,
    make_problems,
    read_problems,
    replayed_operands,
)
from libortho.privacy.encode import encode
from libortho.privacy.greedy import greedy
from libortho.texts import arithmetic

SIGNS = {"plus": "+", "minus": "-", "times": "*"}


def test_problems_are_distinct_and_their_answers_true() -> None:
    problems = make_problems(600, 0)
    assert problems == make_problems(600, 0)
    assert problems != make_problems(600, 1)
    assert len({p.prompt for p in problems}) == 600
    seen: set[str] = set()
    for problem in problems:
        a, sign, b = re.search(r"(\d+) (\S+) (\d+)", problem.prompt).groups()
        sign = SIGNS.get(sign, sign)
        seen.add(sign)
        assert (
            int(problem.answer)
            == {
                "+": int(a) + int(b),
                "-": int(a) - int(b),
                "*": int(a) * int(b),
            }[sign]
        )
        assert max(len(a), len(b)) <= (2 if sign == "*" else 3)
    assert seen == {"+", "-", "*"}
    assert {p.prompt[-1] for p in problems} == {"=", "?", ":"}


def operands(text: str) -> tuple[int, str, int]:
    a, sign, b = re.search(r"(\d+) (\S+) (\d+)", text).groups()
    return int(a), SIGNS.get(sign, sign), int(b)


@pytest.mark.parametrize("seed", [0, 7])
def test_nothing_is_asked_that_the_shipped_replay_text_holds(seed: int) -> None:
    replayed = {operands(document) for document in arithmetic().documents}
    assert replayed == replayed_operands()
    assert len(replayed) == len(arithmetic().documents)
    asked = {operands(problem.prompt) for problem in make_problems(3000, seed)}
    assert len(asked) == 3000
    assert not asked & replayed


def test_what_experiments_ask_was_not_changed_by_the_replay_text() -> None:
    drawn = {}
    for numbers, problem in draw_problems(0):
        drawn.setdefault(numbers, problem)
        if len(drawn) == 2000:
            break
    assert make_problems(2000, 0) == list(drawn.values())


def test_the_answer_is_the_completion(tiny_tokenizer) -> None:
    problems = make_problems(20, 0)
    examples = as_examples(problems)
    assert [one.prompt + one.completion for one in examples] == [
        f"{one.prompt} {one.answer}" for one in problems
    ]
    assert len({one.id for one in examples}) == 20
    for one, encoded in zip(problems, encode(tiny_tokenizer, examples), strict=True):
        assert tiny_tokenizer.decode(encoded.completion_ids).strip() == one.answer


class Scripted(torch.nn.Module):
    """Answers each prompt with prepared text, and has a cache as models do."""

    def __init__(self, tokenizer, answers: dict[str, str]) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.answers = {
            tuple(tokenizer(prompt)["input_ids"]): tokenizer(text, add_special_tokens=False)[
                "input_ids"
            ]
            + [tokenizer.eos_token_id] * 20
            for prompt, text in answers.items()
        }

    def forward(self, ids, past_key_values=None, use_cache=True):
        start = ([tuple(row) for row in ids.tolist()], 0)
        prompts, step = start if past_key_values is None else past_key_values
        logits = torch.zeros(len(ids), ids.shape[1], 512)
        for row, prompt in enumerate(prompts):
            logits[row, -1, self.answers[prompt][step]] = 1
        return SimpleNamespace(logits=logits, past_key_values=(prompts, step + 1))


def test_only_the_whole_answer_counts(tiny_tokenizer) -> None:
    said = {
        "1 + 1 =": (" 2", True),
        "1 + 2 =": ("3\n", True),
        "1 + 3 =": (" 45", False),
        "1 + 4 =": (" 5. Then 6", True),
        "1 - 4 =": (" -3", True),
        "1 - 5 =": (" 4", False),
        "What is 2 plus 2?": (" It is 4", False),
        "What is 2 plus 3?": ("", False),
    }
    answers = ["2", "3", "4", "5", "-3", "-4", "4", "5"]
    problems = [Problem(p, a) for p, a in zip(said, answers, strict=True)]
    model = Scripted(tiny_tokenizer, {prompt: text for prompt, (text, _) in said.items()})
    found = accuracy(model, tiny_tokenizer, problems, batch_size=3)
    assert found.correct == tuple(right for _, right in said.values())
    assert (found.value, found.n) == (0.5, 8)
    assert found.interval.low < 0.5 < found.interval.high


def test_greedy_equals_generate(tiny_model) -> None:
    ids = torch.randint(1, 512, (3, 9), generator=torch.Generator().manual_seed(1))
    expected = tiny_model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )[:, 9:]
    assert greedy(tiny_model, ids, 10).equal(expected)
    first = int(expected[0, 0])
    assert greedy(tiny_model, ids[:1], 10, end_id=first).shape == (1, 1)


def test_problems_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "1 + 1 =", "answer": "2", "op": "+"}\n\n')
    assert read_problems(path) == [Problem("1 + 1 =", "2")]
    path.write_text('{"prompt": "a", "answer": "b"}\nx\n{"prompt": "a", "answer": 3}\n')
    with pytest.raises(FormatError) as caught:
        read_problems(path)
    assert all(f"line {n}:" in str(caught.value) for n in (1, 2, 3))


def test_how_many() -> None:
    with pytest.raises(ConfigError):
        make_problems(0, 0)
