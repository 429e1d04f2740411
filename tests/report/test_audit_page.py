"""An audit on the page: every attack explained, leaks marked where they count, gaps said."""

from __future__ import annotations

import html
import random
import re
from pathlib import Path
from typing import Any

import pytest

from libortho import records, report
from libortho.audit import AUDIT
from libortho.privacy.attacks import ATTACKS
from libortho.privacy.attacks.subject import Outcome, membership, proportion
from libortho.records import Record
from libortho.report import audit

N = 30
TELLING = ("loss", "zlib", "min-k", "min-k++", "reference", "gradient")


def state(known: bool, judged: bool, seed: int) -> dict[str, Any]:
    """One state's figures and raw scores, by the functions that attacks use."""
    rng = random.Random(seed)
    controls = [rng.gauss(90, 8) for _ in range(N)]
    members = [rng.gauss(2 if known else 90, 1 if known else 8) for _ in range(N)]
    outcomes = {name: membership(name, members, controls, 0) for name in TELLING}
    outcomes["greedy"] = Outcome(
        {
            "recited": proportion([known] * N),
            "recited, controls": proportion([False] * N),
        }
    )
    outcomes["exposure"] = Outcome({}, {"members": [5.0] * N, "controls": [1.0] * N})
    if judged:
        limit = 10
        never = {"trained": [0.0, 0.5], "unseen": [0.0, 0.0], "first": [11], "limit": limit}
        outcomes["relearn"] = Outcome({}, {"model": never, "reference": never})
    figures = {
        name: {key: one.as_json() for key, one in outcome.figures.items()}
        for name, outcome in outcomes.items()
    }
    if judged:
        figures["relearn"] = {
            "steps to half": {"value": 11.0, "low": 11.0, "high": 11.0, "n": 15},
            "steps to half, reference": {"value": 7.0, "low": 6.0, "high": 9.0, "n": 15},
        }
    return {
        "judged": judged,
        "attacks": figures,
        "raw": {name: dict(outcome.raw) for name, outcome in outcomes.items()},
    }


def synthetic(verdict: str = "PASS", leak: bool = False) -> Record:
    return records.new(
        AUDIT,
        verdict,  # type: ignore[arg-type]
        n=N,
        seeds=[0],
        backend="native avx2",
        reason="all checks held."
        if verdict == "PASS"
        else "α = 1: recall is 0.1, wanted ≥ 0.95: the run shows nothing.",
        figures={
            "members": N,
            "controls": N,
            "seconds": 61.0,
            "family": {"adjusted": {"α = 0/loss": 0.001 if leak else 0.8, "α = 0/zlib": 0.9}},
            "checks": [],
        },
        methods={"α = 0": state(leak, True, 1), "α = 1": state(True, False, 2)},
        not_run={"lira": "LiRA needs shadow runs: libortho shadows --data FILE -o DIR"},
    )


def render(tmp_path: Path, record: Record) -> str:
    text = report.render([record], tmp_path / "report.html").read_text("utf-8")
    return html.unescape(text).replace("\u00a0", " ")


@pytest.fixture
def page(tmp_path: Path) -> str:
    return render(tmp_path, synthetic())


def test_every_attack_is_explained_with_the_direction_that_is_good(page: str) -> None:
    for name in (*TELLING, "greedy", "relearn"):
        attack = ATTACKS[name]
        assert attack.explains in page
        assert f"<b>Good:</b> {attack.good}." in page
    assert ATTACKS["beam"].explains not in page, "an attack that was not run needs no row"


def test_every_attack_has_a_place_in_the_table() -> None:
    placed = [name for _, names in audit.GROUPS.values() for name in names]
    assert sorted(placed) == sorted(ATTACKS)


def test_the_page_is_whole_and_stands_alone(page: str) -> None:
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert page.count("<svg") == 4
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)
    assert not re.search(r"#0[1-9]0[1-9]0[1-9]", page), "a stand-in colour was left"
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert page == page.replace("<script", "")


def test_a_leak_is_marked_where_nothing_should_be_known_and_only_there(tmp_path: Path) -> None:
    def marked(text: str) -> int:
        return len(re.findall(r'<td class="value bad', text))

    assert marked(render(tmp_path, synthetic())) == 0, "α = 1 is meant to know"
    # Six AUCs and the recited secrets; TPRs are shown and do not decide.
    assert marked(render(tmp_path, synthetic("FAIL", leak=True))) == len(TELLING) + 1


def test_an_auc_below_half_is_a_leak_too() -> None:
    low = state(False, True, 3)
    low["attacks"]["loss"]["AUC"] = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 60}
    found = audit.AuditState("α = 0", True, low["attacks"], low["raw"])
    assert audit.cell(found, "loss", "AUC").bad
    opened = audit.AuditState("α = 1", False, low["attacks"], low["raw"])
    assert not audit.cell(opened, "loss", "AUC").bad


def test_the_verdict_is_one_sentence(tmp_path: Path) -> None:
    def said(record: Record) -> str:
        return audit.sentence(record, audit.states(record))

    assert said(synthetic()) == (
        "At α = 0 no attack told the data from rows that the model never saw, and it recites "
        "0 of 30; at α = 1 it recites 30 of 30."
    )
    assert "still knows the data: it recites 30 of 30, and 6 measure(s)" in said(
        synthetic("FAIL", leak=True)
    )
    assert said(synthetic("VOID")) == (
        "This audit shows nothing, neither way: α = 1: recall is 0.1, wanted ≥ 0.95."
    )


def test_what_never_came_back_is_a_lower_bound(page: str) -> None:
    assert "> 10" in page
    assert "not within 10 steps" in page
    assert "asked of the judged state alone" in page


def test_a_missing_figure_is_red_with_its_command(tmp_path: Path) -> None:
    record = synthetic()
    closed = record.methods["α = 0"]
    attacks = {k: v for k, v in closed.figures["attacks"].items() if k != "relearn"}  # type: ignore[union-attr]
    fields = {**closed.figures, "attacks": attacks, "raw": closed.raw}
    record.methods["α = 0"] = records.Method.model_validate(fields)
    shown = render(tmp_path, record)
    card = re.search(r'<div class="card missing">.*?</div>', shown, re.S)
    assert card is not None
    assert "libortho audit MODEL --data FILE" in card[0]


def test_what_was_not_run_says_how(page: str) -> None:
    assert "libortho shadows --data FILE -o DIR" in page


def test_what_an_early_end_left_out_is_said_once_and_has_no_card(tmp_path: Path) -> None:
    record = synthetic("VOID")
    for label, method in record.methods.items():
        kept = {"greedy": method.figures["attacks"]["greedy"]}  # type: ignore[index]
        fields = {**method.figures, "attacks": kept, "raw": {}}
        record.methods[label] = records.Method.model_validate(fields)
    record.figures["family"] = {"adjusted": {}}
    record.not_run |= dict.fromkeys(("loss", "exposure", "relearn"), "the audit was void before")
    shown = render(tmp_path, record)
    assert 'class="card missing"' not in shown
    assert shown.count("the audit was void before") == 1
    assert "exposure, loss, relearn" in shown or "loss, exposure, relearn" in shown


def test_whole_steps_and_what_no_sampler_emits_are_shown_as_such() -> None:
    figures = {
        "relearn": {"steps to half": {"value": 7.0, "low": 6.0, "high": 9.0, "n": 15}},
        "discoverable": {
            "log10 queries, controls": {"value": 300.0, "low": 300.0, "high": 300.0, "n": 30}
        },
    }
    raw = {"relearn": {"model": {"limit": 10}}}
    found = audit.AuditState("α = 0", True, figures, raw)  # type: ignore[arg-type]
    assert audit.cell(found, "relearn", "steps to half").text == "7"
    assert audit.cell(found, "discoverable", "log10 queries, controls").text == "never"
