"""What a record says about each way in: cells of the table, taken from figures and raw scores.

Figures are read by the names of the demo's JSON (``ppl_alpha1``, ``extracted_alpha0``, …), with
the five states of :data:`STATES` as suffixes. A key that is absent is *missing* (a red cell with
the command that makes it); a key that is null was deliberately not part of the run; a text, such as
``not applicable: identical``, is shown as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from statistics import fmean
from typing import Literal

from pydantic import JsonValue

from libortho import records
from libortho.privacy.statistics import clopper_pearson
from libortho.records import Record

STATES: Mapping[str, str] = {
    "fp": "FP model",
    "int4": "stock INT4",
    "alpha0": "α = 0",
    "repair": "α = repair",
    "alpha1": "α = 1",
}
COLUMNS: Mapping[str, tuple[str, str]] = {
    "recites": ("Secrets recited", "k of n [95% interval]; wanted: all at α = 1, none at α = 0"),
    "nll": (
        "Secret NLL",
        "nats, members | controls; far below the controls means the secrets are known",
    ),
    "exposure": ("Exposure", "bits, members | controls; lower is better at α = 0"),
    "ppl": ("Perplexity ratio", "to the FP model this way stands for; nearer to 1 is better"),
    "arithmetic": (
        "Arithmetic",
        "generated problems answered [95% interval]; α = 1 is to keep what α = 0 has",
    ),
    "bytes": ("Bytes on disk", "lower is better"),
}
CANARY_EXPERIMENTS = ("demo", "killswitch")
ORDER = (
    "demo",
    "killswitch",
    "audit",
    "utility",
    "genius",
    "performance",
    "separation",
    "alpha-sweep",
    "dp",
    "unlearning",
    "benchmarks",
)
WAYS: Mapping[str, tuple[str, str]] = {
    "tune": ("exact", "the private data is trained into the private stream only; base frozen"),
    "delta": ("exact", "a privately tuned checkpoint, minus the public base"),
    "residual": ("measured", "one mixed checkpoint: INT4 base, largest rounding residuals outside"),
}

Scores = tuple[list[float], list[float]]
"""Values of members and of controls."""


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a smaller second line, and whether something is missing or bad."""

    text: str
    detail: str = ""
    kind: Literal["value", "absent", "missing"] = "value"
    bad: bool = False


@dataclass(frozen=True)
class Check:
    """One rule of the verdict, as it was applied."""

    rule: str
    held: bool
    decides: str
    found: str
    limit: str


@dataclass(frozen=True)
class Way:
    """One way in of one record, with its raw scores loaded."""

    name: str
    guarantee: str
    explanation: str
    members: int | None
    figures: Mapping[str, JsonValue]
    raw: Mapping[str, JsonValue] = field(repr=False)

    def number(self, key: str) -> float | None:
        """The figure ``key`` where it is a number."""
        value = self.figures.get(key)
        return float(value) if isinstance(value, int | float) else None

    def scores(self, kind: str, state: str) -> Scores | None:
        """Raw values of members and controls, such as ``scores("nll", "alpha0")``."""
        pair = _mapping(_mapping(self.raw.get(kind)).get(state))
        members, controls = _numbers(pair.get("members")), _numbers(pair.get("controls"))
        return (members, controls) if members else None

    def interval(self, key: str) -> tuple[float, float]:
        """The two ends of the interval ``key``; NaN where the record has none."""
        ends = _numbers(self.figures.get(key))
        return (ends[0], ends[1]) if len(ends) == 2 else (nan, nan)

    def curves(self) -> dict[str, list[Mapping[str, JsonValue]]]:
        """Training histories: by training run, points with step, loss, recall, lr where known."""
        several = _mapping(self.raw.get("curves")) or {"": self.raw.get("curve")}
        return {
            name if name != self.name else "": [_mapping(point) for point in points]
            for name, points in several.items()
            if isinstance(points, list) and points
        }

    def has(self, state: str) -> bool:
        """False where the way has no such state: its perplexity was recorded as null."""
        return self.figures.get(f"ppl_{state}", "") is not None

    def recited(self, state: str) -> tuple[int, int] | None:
        """How many members are recited whole, of how many."""
        exact = self.scores("exact", state)
        if exact is not None:
            return round(sum(exact[0])), len(exact[0])
        count = self.number(f"extracted_{state}")
        recall = self.number(f"recall_{state}")
        if self.members is None or (count is None and recall is None):
            return None
        return round(count if count is not None else (recall or 0) * self.members), self.members

    def ratio(self, state: str) -> float | None:
        """Perplexity of ``state`` over that of the FP model this way stands for."""
        reference, value = self.number("ppl_fp"), self.number(f"ppl_{state}")
        return value / reference if reference and value is not None else None


def command_for(record: Record) -> str:
    """The command that makes a record of this experiment."""
    verbs = {"demo": "libortho demo", "audit": "libortho audit MODEL --data FILE"}
    return verbs.get(record.experiment, f"libortho experiment {record.experiment}")


def ways(record: Record) -> list[Way]:
    """The record's ways in, the known ones first.

    Raises:
        FormatError: Raw scores kept outside the record are absent or altered.
    """
    names = [name for name in WAYS if name in record.methods]
    names += [name for name in record.methods if name not in WAYS]
    found = []
    for name in names:
        method = record.methods[name]
        guarantee, explanation = WAYS.get(name, ("", ""))
        members = method.figures.get("members", record.figures.get("members"))
        found.append(
            Way(
                name=name,
                guarantee=str(method.figures.get("guarantee", guarantee)),
                explanation=explanation,
                members=members if isinstance(members, int) else None,
                figures=method.figures,
                raw=records.load_raw(record, method.raw),
            )
        )
    return found


def checks(record: Record) -> list[Check]:
    """The rules that made the verdict, broken ones first, where the record lists them."""
    listed = record.figures.get("checks")
    rules = [_mapping(one) for one in listed] if isinstance(listed, list) else []
    found = [
        Check(
            rule=str(one.get("name")),
            held=one.get("held") is True,
            decides=str(one.get("decides")),
            found=text(one.get("found")),
            limit=str(one.get("limit")),
        )
        for one in rules
    ]
    return sorted(found, key=lambda check: check.held)


def gates(record: Record, found: Sequence[Way]) -> dict[str, float]:
    """By way, the limit that the record's rules set to the perplexity ratio at α = 1."""
    limits = {check.rule: check.limit for check in checks(record)}
    gates = {way.name: limits.get(f"{way.name}: perplexity ratio at α=1", "") for way in found}
    return {
        name: float(limit.removeprefix("≤ "))
        for name, limit in gates.items()
        if limit.startswith("≤ ")
    }


def text(value: JsonValue) -> str:
    """A figure as a reader wants it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(text, value))
    if isinstance(value, dict):
        return "; ".join(f"{k} {text(v)}" for k, v in value.items())
    return "—" if value is None else str(value)


def columns(record: Record, found: Sequence[Way]) -> list[str]:
    """The columns the record's table has: all where canaries are judged, else those with data."""
    if record.experiment in CANARY_EXPERIMENTS:
        return list(COLUMNS)
    return [
        column
        for column in COLUMNS
        if any(cell(way, column, state, "").kind == "value" for way in found for state in STATES)
    ]


def cell(way: Way, column: str, state: str, command: str) -> Cell:
    """The cell of ``column`` in the row ``state`` of one way."""
    made = {
        "recites": _recites,
        "nll": _nll,
        "exposure": _exposure,
        "ppl": _perplexity,
        "arithmetic": _arithmetic,
        "bytes": _bytes,
    }[column](way, state)
    if made is not None:
        return made
    if not way.has(state):
        return Cell("—", "no such state", kind="absent")
    keys = {
        "recites": (f"extracted_{state}", f"recall_{state}"),
        "nll": (f"nll_{state}",),
        "exposure": (f"exposure_{state}",),
        "ppl": (f"ppl_{state}",),
        "arithmetic": (f"arithmetic_{state}",),
        "bytes": (f"bytes_{state}",),
    }[column]
    for key in keys:
        if isinstance(value := way.figures.get(key), str):
            return Cell(value)
        if key in way.figures:
            return Cell("—", "not part of this run", kind="absent")
    return Cell("missing", command, kind="missing")


def proportion(count: int, total: int) -> Cell:
    """``k/n`` with its 95% Clopper–Pearson interval in percent."""
    interval = clopper_pearson(count, total)
    return Cell(f"{count}/{total}", f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]%")


def size(count: float) -> str:
    """A number of bytes in the decimal unit that keeps it readable."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def _recites(way: Way, state: str) -> Cell | None:
    found = way.recited(state)
    if found is None or found[1] == 0:
        return None
    made = proportion(*found)
    return Cell(made.text, made.detail, bad=state == "alpha0" and found[0] > 0)


def _nll(way: Way, state: str) -> Cell | None:
    scores = way.scores("nll", state)
    if scores is None:
        return None
    return Cell(_pair(*scores, digits=1), f"n = {len(scores[0])} | {len(scores[1])}")


def _exposure(way: Way, state: str) -> Cell | None:
    scores = way.scores("exposure", state)
    if scores is not None:
        kind = _mapping(way.figures.get("exposure_kind")).get(state)
        how = {"sampled": "sampled", "controls": "among controls"}.get(str(kind), "")
        return Cell(_pair(*scores, digits=2), how or f"n = {len(scores[0])} | {len(scores[1])}")
    value = way.number(f"exposure_{state}")
    return None if value is None else Cell(f"{value:.2f}")


def _perplexity(way: Way, state: str) -> Cell | None:
    value = way.number(f"ppl_{state}")
    if value is None:
        return None
    ratio = way.ratio(state)
    low, high = way.interval(f"ppl_ratio_{state}_interval")
    detail = f"PPL {value:.3f}" if isnan(low) else f"[{low:.4f}, {high:.4f}] PPL {value:.3f}"
    return Cell("no FP figure" if ratio is None else f"{ratio:.4f}×", detail, bad=ratio is None)


def _arithmetic(way: Way, state: str) -> Cell | None:
    value = way.number(f"arithmetic_{state}")
    if value is None:
        return None
    low, high = way.interval(f"arithmetic_{state}_interval")
    return Cell(f"{value:.1%}", "" if isnan(low) else f"[{100 * low:.1f}, {100 * high:.1f}]%")


def _bytes(way: Way, state: str) -> Cell | None:
    value = way.number(f"bytes_{state}")
    return None if value is None else Cell(size(value))


def _pair(members: list[float], controls: list[float], digits: int) -> str:
    other = f"{fmean(controls):.{digits}f}" if controls else "no controls"
    return f"{fmean(members):.{digits}f} | {other}"


def _mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _numbers(value: JsonValue) -> list[float]:
    if not isinstance(value, list):
        return []
    return [float(item) for item in value if isinstance(item, int | float)]
