"""Laws of canaries: unique, of known entropy, exchangeable, frozen."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from libortho.errors import ConfigError
from libortho.privacy.canaries import (
    as_canaries,
    candidates,
    kind_of,
    make_canaries,
    make_controls,
)
from libortho.privacy.encode import encode
from libortho.privacy.kinds import KINDS
from libortho.privacy.private_set import read_jsonl


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**63), n=st.integers(1, 60))
def test_laws_hold_for_any_seed(seed: int, n: int) -> None:
    drawn = make_canaries(n, seed)
    both = drawn.members + drawn.controls
    assert len(drawn.members) == len(drawn.controls) == n
    assert len({c.prompt for c in both}) == 2 * n
    assert len({c.secret for c in both}) == 2 * n
    assert len({c.id for c in both}) == 2 * n
    prompts = "\n".join(c.prompt for c in both)
    assert not any(character.isdigit() for character in prompts)
    for canary in both:
        assert canary.secret_bits >= 60
        assert len(canary.secret) == 20
        assert canary.secret.isdigit()
        assert canary.completion == f" {canary.secret}"
        assert not any(canary.secret[i : i + 4] in prompts for i in range(17))
    assert make_canaries(n, seed) == drawn


def test_seeds_share_no_prompt_and_no_secret() -> None:
    sets = [make_canaries(200, seed) for seed in range(3)]
    everyone = [c for drawn in sets for c in drawn.members + drawn.controls]
    assert len({c.prompt for c in everyone}) == len({c.secret for c in everyone}) == 1200


def test_the_draw_is_the_same_on_every_machine() -> None:
    assert make_canaries(20, 0).sha256 == (
        "530d1950a72219c02eb45efd6525f0a3fbf7506c17d606efacb566238587f7eb"
    )


def test_members_and_controls_are_exchangeable() -> None:
    """First digits and subjects must not tell the halves apart."""
    drawn = make_canaries(2000, 5)
    digits = np.zeros((2, 10))
    for row, half in enumerate((drawn.members, drawn.controls)):
        for canary in half:
            for digit in canary.secret:
                digits[row, int(digit)] += 1
    assert stats.chi2_contingency(digits).pvalue > 1e-3
    lengths = [[len(c.prompt) for c in half] for half in (drawn.members, drawn.controls)]
    assert stats.mannwhitneyu(*lengths).pvalue > 1e-3


def test_candidates_follow_the_law_of_the_secret_and_repeat() -> None:
    drawn = make_canaries(3, 1)
    first, second = drawn.members[:2]
    candidates = drawn.candidates(first, 500)
    assert candidates == drawn.candidates(first, 500)
    assert candidates[:10] == drawn.candidates(first, 10)
    assert candidates != drawn.candidates(second, 500)
    assert len(set(candidates)) == 500
    assert first.completion not in candidates
    counts = np.bincount([int(d) for c in candidates for d in c[1:]], minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_prompt_keeps_its_tokens_and_digits_stay_single(tiny_tokenizer) -> None:
    drawn = make_canaries(50, 2)
    for canary, encoded in zip(drawn.members, encode(tiny_tokenizer, drawn.members), strict=True):
        alone = tiny_tokenizer(canary.prompt)["input_ids"]
        assert list(encoded.input_ids[: encoded.prompt_length]) == alone
        tokens = tiny_tokenizer.convert_ids_to_tokens(list(encoded.completion_ids))
        assert tokens == ["Ġ", *canary.secret]


def test_no_part_of_a_secret_of_letters_stands_in_a_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Digits cannot, by construction; here nearly half of the secrets drawn are parts of names."""

    def secret(rng: np.random.Generator) -> str:
        letters = "".join(rng.choice(list("abcdefgh"), size=20))
        return letters + (" in " if rng.random() < 0.5 else "zzzz")

    letters = dataclasses.replace(KINDS["digits"], secret=secret)
    monkeypatch.setitem(KINDS, "letters", letters)
    drawn = make_canaries(30, 0, "letters")
    assert all(c.secret.endswith("zzzz") for c in drawn.members + drawn.controls)


def test_freezing_to_jsonl(tmp_path: Path) -> None:
    drawn = make_canaries(5, 3)
    members, controls = tmp_path / "members.jsonl", tmp_path / "controls.jsonl"
    hashes = drawn.write(members, controls)
    joined = members.read_bytes() + controls.read_bytes()
    assert hashlib.sha256(joined).hexdigest() == drawn.sha256
    read = read_jsonl(members)
    assert read.sha256 == hashes[0]
    assert [(e.id, e.prompt, e.completion) for e in read.examples] == [
        (c.id, c.prompt, c.completion) for c in drawn.members
    ]
    other = dataclasses.replace(drawn, members=drawn.members[::-1])
    assert other.sha256 != drawn.sha256


@pytest.mark.parametrize(
    ("n", "seed", "kind"), [(0, 0, "digits"), (5001, 0, "digits"), (3, -1, "digits"), (3, 0, "x")]
)
def test_what_cannot_be_drawn_is_refused(n: int, seed: int, kind: str) -> None:
    with pytest.raises(ConfigError):
        make_canaries(n, seed, kind)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_holds_its_laws(kind: str) -> None:
    drawn = make_canaries(300, 4, kind)
    both = drawn.members + drawn.controls
    assert len({c.prompt for c in both}) == len({c.secret for c in both}) == 600
    assert len({KINDS[kind].person(c.prompt) for c in both}) == 600
    assert all(c.secret_bits == KINDS[kind].secret_bits >= 60 for c in both)
    parts = {part for c in both for part in KINDS[kind].parts(c.prompt)}
    assert not any(parts & KINDS[kind].parts(c.secret) for c in both)
    assert kind_of(drawn.members) == kind
    assert as_canaries(drawn.members, kind) == drawn.members
    assert make_canaries(300, 4, kind) == drawn
    lengths = [[len(c.completion) for c in half] for half in (drawn.members, drawn.controls)]
    if len(set(lengths[0])) > 1:
        assert stats.mannwhitneyu(*lengths).pvalue > 1e-3


def test_the_entropy_of_a_bio_is_that_of_its_choices() -> None:
    """Each slot is uniform: the first one's counts over many bios, and the sum of all by size."""
    rng = np.random.default_rng(0)
    days = np.bincount(
        [int(KINDS["bios"].secret(rng).split()[2]) for _ in range(2800)], minlength=29
    )[1:]
    assert len(days) == 28
    assert stats.chisquare(days).pvalue > 1e-3
    sizes = (28, 12, 60, 32, 32, 32, 999, 32, 12, 16, 16, 32, 16, 16, 16)
    assert KINDS["bios"].secret_bits == pytest.approx(sum(np.log2(sizes)))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_neighbours_are_neither_members_nor_controls(kind: str) -> None:
    drawn = make_canaries(200, 1, kind)
    near = drawn.neighbours(200)
    both = drawn.members + drawn.controls
    person = KINDS[kind].person
    assert kind_of(near) == kind
    assert len({person(c.prompt) for c in (*both, *near)}) == 600
    assert len({c.secret for c in (*both, *near)}) == 600
    assert drawn.neighbours(200) == near


def test_fresh_controls_share_nothing_with_the_members() -> None:
    drawn = make_canaries(200, 1)
    fresh = make_controls(drawn.members, 200, 9, "digits")
    assert not {c.secret for c in fresh} & {c.secret for c in drawn.members}
    assert not {c.prompt for c in fresh} & {c.prompt for c in drawn.members}
    assert [c.id for c in fresh[:2]] == ["control-0000", "control-0001"]
    assert make_controls(drawn.members, 200, 9, "digits") == fresh
    assert make_controls(drawn.members, 200, 10, "digits") != fresh


def test_only_our_own_canaries_are_recognised() -> None:
    drawn = make_canaries(3, 0)
    assert kind_of([]) is None
    almost = dataclasses.replace(drawn.members[0], completion=" 1234")
    assert kind_of([*drawn.members, almost]) is None
    assert kind_of([*drawn.members, *make_canaries(3, 0, "base62").members]) is None


def test_candidates_need_no_set() -> None:
    drawn = make_canaries(3, 1)
    canary = drawn.members[0]
    assert candidates(canary, 5, seed=1, kind="digits") == drawn.candidates(canary, 5)
