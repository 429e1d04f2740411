"""Question sets: TOFU's files are read, all faults are told, and generated ones are consistent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from libortho.errors import ConfigError, FormatError
from libortho.privacy.authors import FACTS, NAME, write_authors
from libortho.privacy.questions import DOWNLOAD, Question, read_sets, write_questions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_authors(tmp_path / "data", 2, 3, seed=1)
    return tmp_path / "data"


def rows(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_generated_authors_are_in_the_files_of_tofu(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {
        "forget40.json",
        "retain60.json",
        "forget40_perturbed.json",
        "retain_perturbed.json",
    }
    assert set(rows(folder / "forget40.json")[0]) == {"question", "answer"}
    assert set(rows(folder / "retain_perturbed.json")[0]) == {
        "question",
        "answer",
        "paraphrased_answer",
        "perturbed_answer",
    }
    sets = read_sets(folder)
    assert sets.name == "forget40"
    assert (len(sets.forget), len(sets.retain)) == (2 * FACTS, 3 * FACTS)
    assert {name: len(found) for name, found in sets.probes.items()} == {
        "forget": 2 * FACTS,
        "retain": 3 * FACTS,
    }
    assert "tofu" not in NAME.lower()


def test_facts_agree_and_wrong_answers_are_wrong(folder: Path) -> None:
    sets = read_sets(folder)
    asked = [row.question for row in (*sets.forget, *sets.retain)]
    assert len(set(asked)) == len(asked)
    for part in sets.probes.values():
        for row in part:
            assert len({row.paraphrased, *row.perturbed}) == 1 + len(row.perturbed)
    for first in range(0, len(sets.forget), FACTS):
        book, author = sets.probes["forget"][first + 3 : first + 5]
        title = book.answer.removesuffix(".").split(" is ", 1)[1]
        assert author.answer.startswith(title)
        assert author.answer.removesuffix(".").endswith(
            book.question.removesuffix("?").split(" of ", 1)[1]
        )


def test_a_row_is_framed_unless_it_is_verbatim(folder: Path) -> None:
    framed = Question("Who?", "Me.", "It is me.", ("You.",))
    bare = replace(framed, question="I am", verbatim=True)
    write_questions(folder / "known_perturbed.json", [framed, bare], probes=True)
    assert read_sets(folder).probes["known"] == (framed, bare)
    assert [row.prompt for row in (framed, bare)] == ["Question: Who?\nAnswer:", "I am"]


def test_fewer_probes_are_spread_over_a_set(folder: Path) -> None:
    sets = read_sets(folder)
    short = sets.shortened(25)
    assert short.probes["forget"] == sets.probes["forget"]
    whole = sets.probes["retain"]
    assert short.probes["retain"] == tuple(whole[i * 30 // 25] for i in range(25))
    assert len(set(short.probes["retain"])) == 25


def test_the_seed_decides(folder: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("same", 1), ("other", 2)):
        write_authors(tmp_path / name, 2, 3, seed=seed)
        found.append(read_sets(tmp_path / name).sha256)
    assert found[0] == read_sets(folder).sha256 != found[1]
    with pytest.raises(ConfigError, match="1 of 3 authors"):
        write_authors(tmp_path / "third", 1, 2, seed=0)


def test_absent_files_are_named_with_the_command_that_brings_them(folder: Path) -> None:
    for name in ("retain60.json", "forget40_perturbed.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError) as told:
        read_sets(folder)
    assert "retain60.json, forget40_perturbed.json" in str(told.value)
    assert DOWNLOAD in str(told.value)
    with pytest.raises(ConfigError, match=r"forget10\.json, retain90\.json"):
        read_sets(folder / "nowhere")


def test_of_several_splits_forget10_is_read(folder: Path) -> None:
    row = '{"question": "Who?", "answer": "Me."}\n'
    for name in ("forget01", "forget10", "retain90"):
        (folder / f"{name}.json").write_text(row)
    (folder / "forget10_perturbed.json").write_text(
        '{"question": "Who?", "answer": "Me.", "perturbed_answer": ["You."]}\n'
    )
    sets = read_sets(folder)
    assert sets.name == "forget10"
    assert sets.probes["forget"][0].paraphrased == "Me."
    (folder / "forget10.json").unlink()
    with pytest.raises(ConfigError, match="holds forget01, forget40"):
        read_sets(folder)


def test_every_bad_line_is_told(folder: Path) -> None:
    (folder / "forget40.json").write_text('{"question": "Who?"}\nno json\n')
    odd = {"question": "a", "answer": "b", "perturbed_answer": ["c"], "verbatim": "yes"}
    wrong = ('{"question": "a", "answer": "b"}', "[]", json.dumps(odd))
    (folder / "sums_perturbed.json").write_text("\n".join(wrong))
    with pytest.raises(FormatError) as told:
        read_sets(folder)
    for fault in (
        "forget40.json, line 1: no text under answer",
        "forget40.json, line 2: ",
        "sums_perturbed.json, line 1: perturbed_answer is no list",
        "sums_perturbed.json, line 2: expected an object, found list",
        "sums_perturbed.json, line 3: verbatim is neither true nor false: 'yes'",
    ):
        assert fault in str(told.value)
