"""The measures of TOFU, and what is said of a copy that is not whole."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from libortho.errors import ConfigError, FormatError
from libortho.evaluate.tofu import (
    AUTHORS,
    FACTS,
    FILES,
    FORGET,
    RETAIN,
    Asked,
    Question,
    ask,
    examples,
    forget_quality,
    read_sets,
    recall,
    utility,
)

ONE = Question("Who?", "Ada", "It was Ada", ("Bea", "Cleo"))


def write(folder: Path, rows: list[dict[str, object]]) -> Path:
    for name in FILES.values():
        (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return folder


def test_sets_are_read_and_an_answer_paraphrases_itself_for_want_of_another(tmp_path: Path) -> None:
    row = {"question": "Who?", "answer": "Ada", "perturbed_answer": ["Bea", "Cleo"]}
    sets = read_sets(write(tmp_path, [row, row | {"paraphrased_answer": "It was Ada"}]))
    assert list(sets) == [FORGET, RETAIN, AUTHORS, FACTS]
    assert sets[FACTS] == [Question("Who?", "Ada", "Ada", ("Bea", "Cleo")), ONE]


def test_what_is_missing_or_bad_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks forget10_perturbed.json, retain_perturbed"):
        read_sets(tmp_path)
    good = {"question": "Who?", "answer": "Ada", "perturbed_answer": ["Bea"]}
    bad = [good, {"question": "Who?"}, good | {"perturbed_answer": []}, good | {"answer": 3}]
    write(tmp_path, bad)
    (tmp_path / FILES[RETAIN]).write_text("{", "utf-8")
    with pytest.raises(FormatError) as refused:
        read_sets(tmp_path)
    for told in ("10_perturbed.json, line 2: KeyError", "line 3: expected", "line 4: expected"):
        assert told in str(refused.value)
    assert "retain_perturbed.json, line 1: JSONDecodeError" in str(refused.value)
    assert "retain_perturbed.json: no rows" in str(refused.value)


def test_probabilities_are_those_of_the_tokens(tiny_model, tiny_tokenizer) -> None:
    other = Question("Where?", "Paris", "Paris", ("Rome",))
    found = ask(tiny_model, tiny_tokenizer, FORGET, [ONE, other])

    def likely(question: str, answer: str) -> float:
        prompt = f"Question: {question}\nAnswer:"
        ids = tiny_tokenizer(f"{prompt} {answer}", return_tensors="pt")["input_ids"]
        start = len(tiny_tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            log_probs = tiny_model(ids).logits.double().log_softmax(-1)[0, start - 1 : -1]
        return math.exp(float(log_probs.gather(1, ids[0, start:, None]).mean()))

    wrong = [likely("Who?", text) for text in ONE.perturbed]
    assert found.probability[0] == pytest.approx(likely("Who?", "Ada"), rel=1e-4)
    ratio = sum(wrong) / 2 / likely("Who?", "It was Ada")
    assert found.truth_ratio[0] == pytest.approx(ratio, rel=1e-4)
    ratio = likely("Where?", "Rome") / likely("Where?", "Paris")
    assert found.truth_ratio[1] == pytest.approx(ratio, rel=1e-4)
    choice = ask(tiny_model, tiny_tokenizer, FACTS, [ONE])
    right = likely("Who?", "Ada")
    assert choice.probability[0] == pytest.approx(right / (right + sum(wrong)), rel=1e-4)


def test_the_chat_template_is_used_where_there_is_one(tiny_tokenizer, monkeypatch) -> None:
    (plain,) = examples(tiny_tokenizer, [ONE])
    assert (plain.prompt, plain.completion) == ("Question: Who?\nAnswer:", " Ada")
    template = "{{ bos_token }}[user]{{ messages[0]['content'] }}[model]"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template, raising=False)
    (chat,) = examples(tiny_tokenizer, [ONE])
    assert (chat.prompt, chat.completion) == ("[user]Who?[model]", "Ada")


def test_recall_counts_words_in_order() -> None:
    assert recall("The author is Ada Lovelace!", "ada lovelace") == pytest.approx(1.0)
    assert recall("Lovelace, Ada", "Ada Lovelace") == pytest.approx(0.5)
    assert recall("", "Ada") == 0.0


def test_utility_is_the_harmonic_mean_of_nine() -> None:
    good, poor = Asked([0.5], [0.5], [0.5]), Asked([0.25], [0.5], [0.5])
    assert utility({RETAIN: good, AUTHORS: good, FACTS: good}) == pytest.approx(0.5)
    assert utility({RETAIN: good, AUTHORS: poor, FACTS: good}) == pytest.approx(9 / (8 * 2 + 4))
    assert utility({RETAIN: good, AUTHORS: Asked([1.0], [1.0], [1.5]), FACTS: good}) == 0.0


def test_forget_quality_is_large_where_truth_ratios_are_alike() -> None:
    same = [0.1 * i for i in range(40)]
    assert forget_quality(same, same) == pytest.approx(1.0)
    assert forget_quality(same, [one + 3 for one in same]) < 1e-6
