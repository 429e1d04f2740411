"""Turn records into one self-contained HTML page: no network, light and dark, printable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from libortho.errors import ConfigError
from libortho.records import RawFile, Record, write_atomic
from libortho.report import (
    audit,
    audit_plots,
    plots,
    speed,
    speed_plots,
    tables,
    tables_plots,
    view,
    words,
)
from libortho.report.cards import Card, cards, share
from libortho.report.view import Cell, Way

MARKS = {"PASS": "✓", "FAIL": "✕", "VOID": "∅"}
PLOT_WORDS = {
    "training": (
        "Loss and recall while the private data was being learned: a loss that falls and a recall "
        "that reaches 100% are good, for without memory there is nothing to switch off."
    ),
    "exposures": (
        "How far each secret stands out among others of its kind: at α = 0 members should look "
        "like controls (left column: overlap is good), at α = 1 they should stand far to the right."
    ),
    "perplexities": (
        "How much worse each state predicts held-out text than the FP model: shorter bars are "
        "better, and 1× is no loss at all."
    ),
}


@dataclass(frozen=True)
class Run:
    """One record, ready for the template."""

    record: Record
    ident: str
    mark: str
    sentence: str
    command: str
    sha256: str
    link: str | None
    ways: Sequence[Way]
    columns: Sequence[str]
    table: Mapping[str, Sequence[tuple[str, Sequence[Cell]]]]
    section: Markup | None
    cards: Sequence[Card]
    checks: Sequence[view.Check]
    findings: Sequence[words.Finding]
    plots: Sequence[tuple[Markup | None, str]]
    others: Sequence[tuple[str, str]]
    raw_files: Sequence[RawFile]
    model: str = ""


def render(records: Sequence[Record], out: Path) -> Path:
    """Write the report of ``records`` to ``out`` and return its path.

    Records of one experiment share a section; the same records give the same bytes.

    Args:
        records: At least one record, in any order.
        out: The HTML file; its folder is made.

    Raises:
        ConfigError: No record was given.
        FormatError: Raw scores kept outside a record are absent or altered.
    """
    if not records:
        raise ConfigError(
            "a report needs at least one record: run `libortho demo` or "
            "`libortho experiment NAME`, which write one"
        )
    ordered = sorted(records, key=lambda r: (_rank(r), r.experiment, r.seeds, r.created))
    runs = [_run(record, f"r{i}", out) for i, record in enumerate(ordered)]
    sections: dict[str, list[Run]] = {}
    for run in runs:
        sections.setdefault(run.record.experiment, []).append(run)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    files = resources.files("libortho.report")
    template = environment.from_string((files / "page.html").read_text(encoding="utf-8"))
    page = template.render(
        style=Markup((files / "style.css").read_text(encoding="utf-8")),
        headline=runs[0],
        runs=runs,
        sections=sections,
        seeds_tables={name: _across(group) for name, group in sections.items()},
        column_words=view.COLUMNS,
        states=view.STATES,
        marks=MARKS,
    )
    # "α = 0" is one word to a reader: keep it on one line.
    write_atomic(out, page.replace("α = ", "α\u00a0=\u00a0"))
    return out


def _rank(record: Record) -> int:
    known = record.experiment in view.ORDER
    return view.ORDER.index(record.experiment) if known else len(view.ORDER)


def _run(record: Record, ident: str, out: Path) -> Run:
    if audit.is_audit(record):
        return _audited(record, ident, out)
    if record.experiment == "performance":
        return _timed(record, ident, out)
    if tables.tables(record):
        return _tabled(record, ident, out)
    found = view.ways(record)
    command = view.command_for(record)
    columns = view.columns(record, found)
    judged = record.experiment in view.CANARY_EXPERIMENTS
    drawn = {
        "training": plots.training(found, f"{ident}t"),
        "exposures": plots.exposures(found, f"{ident}e"),
        "perplexities": plots.perplexities(found, view.gates(record, found), f"{ident}p"),
    }
    return Run(
        record=record,
        ident=ident,
        mark=MARKS[record.verdict],
        sentence=words.verdict_sentence(record, found),
        command=command,
        sha256=record.sha256(),
        link=_link(record, out),
        ways=found,
        columns=columns,
        table={
            way.name: [
                (state, [view.cell(way, column, state, command) for column in columns])
                for state in view.STATES
            ]
            for way in found
        },
        section=None,
        cards=cards(record, found, command) if judged else [],
        checks=view.checks(record),
        findings=[words.finding(way) for way in found] if judged else [],
        plots=[(svg, PLOT_WORDS[name]) for name, svg in drawn.items() if svg or judged],
        others=_others(record, found, judged),
        raw_files=_raw_files(record),
    )


def _audited(record: Record, ident: str, out: Path) -> Run:
    """An audit: its methods are states of the gate, and attacks make its rows."""
    found = audit.states(record)
    command = view.command_for(record)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = (resources.files("libortho.report") / "audit.html").read_text(encoding="utf-8")
    section = environment.from_string(text).render(groups=audit.groups(found), states=found)
    drawn = {
        name: getattr(audit_plots, name)(found, f"{ident}-{name}") for name in audit_plots.WORDS
    }
    told = ("verdict", "checks", "family", "states", "judged", "seconds")
    figures = {**record.config, **record.figures}
    return Run(
        record=record,
        ident=ident,
        mark=MARKS[record.verdict],
        sentence=audit.sentence(record, found),
        command=command,
        sha256=record.sha256(),
        link=_link(record, out),
        ways=[],
        columns=[],
        table={},
        section=Markup(section),
        model=str(record.config.get("model", "")),
        cards=audit.cards(record, found, command),
        checks=view.checks(record),
        findings=[],
        plots=[(svg, audit_plots.WORDS[name]) for name, svg in drawn.items() if svg],
        others=[(key, view.text(value)) for key, value in figures.items() if key not in told],
        raw_files=_raw_files(record),
    )


def _timed(record: Record, ident: str, out: Path) -> Run:
    """A run of ``performance``: its methods are states that were timed."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = (resources.files("libortho.report") / "speed.html").read_text(encoding="utf-8")
    section = environment.from_string(text).render(
        record=record, batches=speed.batches(record), lines=speed.lines(record)
    )
    drawn = {
        name: getattr(speed_plots, name)(record, f"{ident}-{name}") for name in speed_plots.WORDS
    }
    figures = {**record.config, **record.figures}
    return Run(
        record=record,
        ident=ident,
        mark=MARKS[record.verdict],
        sentence=speed.sentence(record),
        command=view.command_for(record),
        sha256=record.sha256(),
        link=_link(record, out),
        ways=[],
        columns=[],
        table={},
        section=Markup(section),
        cards=[],
        checks=view.checks(record),
        findings=[],
        plots=[(svg, speed_plots.WORDS[name]) for name, svg in drawn.items() if svg],
        others=[(key, view.text(value)) for key, value in figures.items() if key != "checks"],
        raw_files=_raw_files(record),
    )


def _tabled(record: Record, ident: str, out: Path) -> Run:
    """A run whose rows are points or methods rather than states of a gate."""
    tabled = ("checks", "gates", "recited_by_exposure")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = (resources.files("libortho.report") / "tables.html").read_text(encoding="utf-8")
    link = _link(record, out)
    # Where the record's file lies elsewhere, its hash stands with the run.
    section = environment.from_string(text).render(
        tables=tables.tables(record), link=link or f"#{ident}"
    )
    figures = {**record.config, **record.figures}
    return Run(
        record=record,
        ident=ident,
        mark=MARKS[record.verdict],
        sentence=tables.sentence(record),
        command=view.command_for(record),
        sha256=record.sha256(),
        link=link,
        ways=[],
        columns=[],
        table={},
        section=Markup(section),
        cards=[],
        checks=view.checks(record),
        findings=[],
        plots=[
            (tables_plots.plot(record, f"{ident}-points"), tables_plots.WORDS[record.experiment])
        ],
        others=[(key, view.text(value)) for key, value in figures.items() if key not in tabled],
        raw_files=_raw_files(record),
    )


def _raw_files(record: Record) -> list[RawFile]:
    raws = (record.raw, *(method.raw for method in record.methods.values()))
    return [raw for raw in raws if isinstance(raw, RawFile)]


def _across(group: Sequence[Run]) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """For several runs of one experiment: per way, one row a run and one for all of them."""
    if len(group) < 2:
        return []
    names = list(dict.fromkeys(way.name for run in group for way in run.ways))
    table = []
    for name in names:
        rows = []
        pooled: dict[str, list[tuple[int, int]]] = {"alpha1": [], "alpha0": []}
        for run in group:
            missing = Cell("missing", run.command, kind="missing")
            way = next((way for way in run.ways if way.name == name), None)
            seeds = ", ".join(map(str, run.record.seeds))
            if way is None:
                rows.append((f"seed {seeds}", [missing] * 6))
                continue
            cells = []
            for state in ("alpha1", "alpha0"):
                pair = way.recited(state)
                pooled[state] += [pair] if pair else []
                cells.append(share(pair, missing, bad=state == "alpha0"))
            cells += [view.cell(way, "exposure", s, run.command) for s in ("alpha1", "alpha0")]
            cells.append(view.cell(way, "ppl", "alpha1", run.command))
            density = way.number("density")
            cells.append(missing if density is None else Cell(f"{100 * density:.2f}%"))
            rows.append((f"seed {seeds}", cells))
        if any(pooled.values()):
            sums = [
                share((sum(k for k, _ in pairs), sum(n for _, n in pairs)), Cell("—"), bad=off)
                for pairs, off in ((pooled["alpha1"], False), (pooled["alpha0"], True))
            ]
            rows.append(("all seeds", [*sums, *[Cell("", kind="absent")] * 4]))
            table.append((name, rows))
    return table


def _others(record: Record, found: Sequence[Way], judged: bool) -> list[tuple[str, str]]:
    """Figures that neither the cards nor the table show, as name and text."""
    shown = {f"{stem}_{s}" for stem in ("ppl", "bytes", "extracted") for s in view.STATES}
    for state in view.STATES:
        shown |= {f"arithmetic_{state}", f"arithmetic_{state}_interval"}
    known = {"verdict", "checks"}
    if judged:
        known |= {"seconds", *(key for way in found for key in way.figures)}
    listed = [(key, value) for key, value in record.figures.items() if key not in known]
    listed += [(f"{w.name}: {k}", v) for w in found for k, v in w.figures.items() if k not in shown]
    return [(key, view.text(value)) for key, value in listed]


def _link(record: Record, out: Path) -> str | None:
    """The record's file as an address relative to the report, where it lies at or below it."""
    if record.source is None:
        return None
    source, folder = record.source.resolve(), out.resolve().parent
    return quote(str(source.relative_to(folder))) if source.is_relative_to(folder) else None
