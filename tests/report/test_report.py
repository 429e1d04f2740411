"""The page: self-contained, deterministic, complete, and honest about what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from libortho import records, report
from libortho.errors import ConfigError
from libortho.experiments.verdict import as_json, at_most
from libortho.records import Record
from libortho.report import view

MakeRecord = Callable[..., Record]
VOID_ELEMENTS = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects what the tests ask of a page, and fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "xlink:href"):
                self.addresses.append(value or "")


def render(tmp_path: Path, *given: Record) -> str:
    return report.render(given, tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(make_record: MakeRecord, tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(tmp_path_factory.mktemp("page"), make_record())


def test_the_page_is_well_formed_and_needs_no_network(page: str) -> None:
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids)), "ids of two plots collide"
    assert all(a.startswith("#") for a in parsed.addresses), parsed.addresses
    inner = {a[1:] for a in parsed.addresses}
    assert inner <= set(parsed.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(parsed.ids)
    assert "@import" not in page
    assert "<script" not in page
    assert page.count("<svg") == 3


def test_plots_take_their_colours_from_the_page(page: str) -> None:
    assert not re.search(r"#0[1-9]0[1-9]0[1-9]", page), "a stand-in colour was left"
    for variable in ("--ink", "--accent", "--way-0", "--way-1", "--way-2"):
        assert f"var({variable})" in page
        assert page.count(f"{variable}:") == 3, "light, dark and print each need their value"


def test_the_verdict_is_said_in_plain_words(page: str) -> None:
    assert "Switched on, the model recites 20 of 20 secrets; switched off, it recites 0 of 20" in (
        page
    )
    assert "20/20" in page
    assert "[83.2, 100.0]%" in page
    assert "1.0090×" in page
    assert "missing</span>" not in page


def test_a_record_is_linked_and_hashed(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    records.write(record, tmp_path / "records" / "demo 1.json")
    text = render(tmp_path, record)
    assert record.sha256() in text
    assert 'href="records/demo%201.json"' in text
    assert render(tmp_path, records.read(tmp_path / "records" / "demo 1.json")) == text


def test_what_is_missing_is_red_and_names_its_command(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    record = make_record("killswitch")
    del record.methods["delta"].__pydantic_extra__["ppl_int4"]
    del record.figures["density"]
    record.methods["tune"].raw = None
    record.methods["residual"].__pydantic_extra__["bytes_repair"] = None
    record.not_run = {"WikiText-2": "libortho experiment utility --text wiki.txt"}
    text = render(tmp_path, record)
    # tune: 5 NLL, 3 exposures, 3 recitals; delta: one perplexity; and the density's card.
    assert text.count('<td class="missing">') == 12
    assert "not in the record" in text
    assert text.count("<code>libortho experiment killswitch</code>") >= 12
    assert '<td class="absent">' in text
    assert "libortho experiment utility --text wiki.txt" in text


def test_seeds_share_a_section_and_are_pooled(tmp_path: Path, make_record: MakeRecord) -> None:
    text = render(
        tmp_path,
        *(make_record("killswitch", n=30, seed=seed) for seed in (3, 1, 2)),
        make_record(),
    )
    Page(text)
    assert text.count("<section") == 2
    assert text.index(">demo</h2>") < text.index(">killswitch</h2>")
    assert "90/90" in text
    assert text.count("all seeds</th>") == 3


def test_experiments_without_canaries_show_what_they_have(tmp_path: Path) -> None:
    record = records.new(
        "utility",
        "FAIL",
        n=40,
        seeds=[1],
        backend="reference",
        reason="`tune` at α = 1 is <1.05x>",
        figures={"text_sha256": "ab" * 32},
        methods={"tune": {"ppl_fp": 20.0, "ppl_int4": 20.2, "ppl_alpha1": 61.0}},
    )
    text = render(tmp_path, record)
    assert "3.0500×" in text
    assert "Secrets recited" not in text
    assert "&lt;1.05x&gt;" in text
    assert "ab" * 32 in text
    assert text.count("<svg") == 1


def test_a_record_without_methods_still_renders(tmp_path: Path) -> None:
    record = records.new(
        "performance", "VOID", n=1, seeds=[1], backend="reference", figures={"ratio": 1.5}
    )
    assert "This run shows nothing, neither way" in render(tmp_path, record)


def test_no_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="libortho demo"):
        report.render([], tmp_path / "report.html")


def test_the_rules_are_listed_and_draw_their_gate(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    assert view.gates(record, view.ways(record)) == {"tune": 1.04, "delta": 1.04}
    record.figures["checks"] = as_json([at_most("tune: density of private", 0.5, 0.02, "FAIL")])
    record.verdict, record.reason = "FAIL", "tune: density of private is 0.5, wanted ≤ 0.02"
    assert view.gates(record, view.ways(record)) == {}
    text = render(tmp_path, record)
    assert "broken</b>" in text
    assert "<b>What decided:</b> tune: density of private is 0.5" in text


def test_a_state_the_way_does_not_have_is_not_missing(make_record: MakeRecord) -> None:
    record = make_record()
    method = record.methods["residual"]
    method.__pydantic_extra__["ppl_repair"] = None
    assert isinstance(method.raw, dict)
    for kind in ("nll", "exposure", "exact"):
        scores = method.raw[kind]
        assert isinstance(scores, dict)
        del scores["repair"]
    for stem in ("bytes", "arithmetic"):
        del method.__pydantic_extra__[f"{stem}_repair"]
    (way,) = [way for way in view.ways(record) if way.name == "residual"]
    kinds = {view.cell(way, column, "repair", "libortho demo").kind for column in view.COLUMNS}
    assert kinds == {"absent"}


def test_every_training_run_has_its_line(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    raw = record.methods["delta"].raw
    assert isinstance(raw, dict)
    raw["curves"] = {"LoRA": raw["curve"], "delta": raw["curve"]}
    text = render(tmp_path, record)
    assert "delta: LoRA" in text
