"""Neighbours read off the rows themselves: the template stays, everything else is another's."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libortho.errors import ConfigError
from libortho.privacy.canaries import make_canaries
from libortho.privacy.private_set import Example
from libortho.privacy.resample import neighbours

PUBLIC = ["the number of the code is in a door and the gate of a town, with number and code"]


@pytest.mark.parametrize("kind", ["digits", "base62", "bios"])
def test_neighbours_of_canaries_share_the_template_and_no_secret(kind: str) -> None:
    members = make_canaries(50, 0, kind).members
    found = neighbours(members, 200, 1, PUBLIC)
    assert len(found) == 200
    prompts, secrets = ({getattr(m, a) for m in members} for a in ("prompt", "completion"))
    for row, like in zip(found, [members[i % 50] for i in range(200)], strict=True):
        assert row.prompt not in prompts
        assert row.completion not in secrets
        # Punctuation and spaces are where they were.
        for ours, theirs in ((row.prompt, like.prompt), (row.completion, like.completion)):
            assert re.sub(r"[^\W_]+", "w", ours) == re.sub(r"[^\W_]+", "w", theirs)
    if kind == "digits":
        assert all(re.fullmatch(r" \d{20}", row.completion) for row in found)
        assert all(re.match(r"The .* of .* in .* is$", row.prompt) for row in found)
    digits = {row.completion for row in found}
    assert len(digits) == 200


def test_a_word_is_replaced_by_one_word_throughout_a_row() -> None:
    rows = [
        Example("a", "Ask Zorblat about Zorblat", " Zorblat knows 77193"),
        Example("b", "x", "y"),
    ]
    (row,) = neighbours(rows, 1, 0, PUBLIC)
    names = re.findall(r"[A-Z]\w+", row.prompt + row.completion)
    assert len(set(names[1:])) == 1
    assert names[1] != "Zorblat"
    assert row.completion.split()[-1].isdigit()
    assert row.completion.split()[-1] != "77193"


def test_codes_do_not_keep_their_pattern_of_classes() -> None:
    rows = [Example("a", "Key of Ulmer", " aaaaBBBB1111")]
    shapes = {
        re.sub("[A-Z]", "A", re.sub("[a-z]", "a", re.sub(r"\d", "1", row.completion)))
        for row in neighbours(rows, 20, 0, PUBLIC)
    }
    assert len(shapes) > 10


def test_a_row_of_common_words_is_changed_all_the_same() -> None:
    rows = [Example("a", "the number of the", " code is in a door")]
    for row in neighbours(rows, 5, 0, PUBLIC):
        assert row.prompt != rows[0].prompt
        assert row.completion != rows[0].completion


def test_rows_that_leave_nothing_to_exchange_are_named() -> None:
    rows = [Example("short", "", " a b c"), Example("fine", "", " Quorl 12345")]
    with pytest.raises(ConfigError, match=r"these rows .*: short; .*--neighbour-file"):
        neighbours(rows, 2, 0)
    with pytest.raises(ConfigError, match="0 neighbours"):
        neighbours(rows, 0, 0)


def test_the_seed_decides() -> None:
    members = make_canaries(5, 0).members
    assert neighbours(members, 9, 3, PUBLIC) == neighbours(members, 9, 3, PUBLIC)
    assert neighbours(members, 9, 3, PUBLIC) != neighbours(members, 9, 4, PUBLIC)


@given(text=st.text(min_size=1, max_size=60), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=100)
def test_any_text_has_neighbours_or_is_refused(text: str, seed: int) -> None:
    rows = [Example("a", "", text)]
    try:
        found = neighbours(rows, 3, seed, PUBLIC)
    except ConfigError:
        return
    assert all(row.completion != text or not text.strip() for row in found)


def test_the_seed_decides_and_no_hash_of_a_text() -> None:
    script = (
        "from libortho.privacy.canaries import make_canaries\n"
        "from libortho.privacy.resample import neighbours\n"
        "print(neighbours(make_canaries(20, 0, 'bios').members, 20, 1, ['all the same']))\n"
    )
    drawn = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert drawn[0] == drawn[1]
