"""The sentences: a silent base that knows the secrets is called a leak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from libortho.records import Record
from libortho.report import view, words
from libortho.report.view import Way


def way(name: str, guarantee: str, members: list[float], **figures: Any) -> Way:
    controls = [90.0 + i for i in range(20)]
    return Way(
        name,
        guarantee,
        "",
        20,
        {"extracted_alpha0": 0, **figures},
        {"nll": {"alpha0": {"members": members, "controls": controls}}},
    )


def test_silence_with_a_low_nll_is_called_a_leak() -> None:
    found = words.finding(way("residual", "measured", [30.0 + i for i in range(20)]))
    assert found.leak
    assert found.text.startswith("Leak: at α = 0 greedy decoding recites 0 of 20, but")
    assert "39.5 nats on average, a control's 99.5 (AUC 1.00" in found.text


def test_members_that_look_like_controls_are_not_called_safe() -> None:
    found = words.finding(way("residual", "measured", [90.5 + i for i in range(20)]))
    assert not found.leak
    assert "does not prove there is none" in found.text


def test_members_that_cost_more_than_controls_are_no_leak() -> None:
    assert not words.finding(way("residual", "measured", [190.0 + i for i in range(20)])).leak


def test_one_recited_secret_is_a_leak_in_every_way() -> None:
    found = words.finding(
        way("tune", "exact", [90.0] * 20, extracted_alpha0=1, identical_alpha0=True)
    )
    assert found.leak
    assert "recites 1 of 20" in found.text


def test_an_exact_way_rests_on_identity() -> None:
    same = words.finding(way("tune", "exact", [90.5 + i for i in range(20)], identical_alpha0=True))
    assert not same.leak
    assert "No leak is possible" in same.text
    broken = words.finding(
        way("tune", "exact", [90.0 + i for i in range(20)], identical_alpha0=False)
    )
    assert broken.leak
    assert broken.text.startswith("Broken:")


def test_without_scores_nothing_is_claimed() -> None:
    bare = Way("residual", "measured", "", 20, {"extracted_alpha0": 0}, {})
    assert words.finding(bare).leak
    assert words.finding(bare).text.startswith("Unknown:")


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "VOID"])
def test_every_verdict_has_its_sentence(verdict: Any, make_record: Callable[..., Record]) -> None:
    record = make_record()
    record.verdict = verdict
    found = view.ways(record)
    text = words.verdict_sentence(record, found)
    assert text.endswith(".")
    assert ("bit for bit" in text) == (verdict == "PASS")
    assert ("neither way" in text) == (verdict == "VOID")


def test_void_says_which_precondition_failed(make_record: Callable[..., Record]) -> None:
    record = make_record()
    record.verdict = "VOID"
    record.figures["native_op_calls"] = 7
    assert "ran 7 times where 5880" in words.verdict_sentence(record, view.ways(record))
    record.figures["recall_alpha1"] = 0.4
    assert "recall 40%" in words.verdict_sentence(record, view.ways(record))


def test_recall_is_read_from_scores_or_figures() -> None:
    assert Way("tune", "", "", 20, {"recall_alpha1": 0.95}, {}).recited("alpha1") == (19, 20)
    raw: dict[str, Any] = {"exact": {"alpha1": {"members": [True, False], "controls": [False]}}}
    assert Way("tune", "", "", 20, {}, raw).recited("alpha1") == (1, 2)
    assert Way("tune", "", "", None, {"recall_alpha1": 0.95}, {}).recited("alpha1") is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_440_000, "9.44 MB"), (5e12, "5.00 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert view.size(count) == text
