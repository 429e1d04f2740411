"""The headline numbers of a run that judges canaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libortho.records import Record
from libortho.report import view
from libortho.report.view import Cell, Way


@dataclass(frozen=True)
class Card:
    """One headline number: what it is, its value, and which direction is good."""

    label: str
    cell: Cell
    meaning: str


def cards(record: Record, found: Sequence[Way], command: str) -> list[Card]:
    """The run's headline numbers; of several exact ways, the worse one's."""
    members = record.figures.get("members")
    top = Way("all", "", "", members if isinstance(members, int) else None, record.figures, {})
    missing = Cell("missing", command, kind="missing")
    judged = [way for way in found if way.guarantee == "exact"] or list(found)
    recited = {
        state: [pair for way in judged if (pair := way.recited(state))]
        for state in ("alpha0", "alpha1")
    }
    identical = record.figures.get("identical_alpha0")
    calls, expected = top.number("native_op_calls"), top.number("expected_op_calls")
    worst = min(recited["alpha1"]) if recited["alpha1"] else top.recited("alpha1")
    leaked = max(recited["alpha0"]) if recited["alpha0"] else top.recited("alpha0")
    pydoc = _ratio(top, "ppl_pydoc_alpha1", "ppl_pydoc_fp")
    interval = next(
        (
            f"[{low:.4f}, {high:.4f}]"
            for way in judged
            for low, high in [way.interval("ppl_pydoc_ratio_alpha1_interval")]
            if pydoc is not None and low <= pydoc <= high
        ),
        "",
    )
    density, seconds = top.number("density"), top.number("seconds")
    return [
        Card("Recited, stream on", share(worst, missing), "higher is better: the power gate"),
        Card("Recited, stream off", share(leaked, missing, bad=True), "0 is wanted"),
        Card(
            "Bit-identical at α = 0",
            Cell("yes" if identical else "no", bad=not identical)
            if isinstance(identical, bool)
            else missing,
            "yes is wanted: every compared logit equals the base's",
        ),
        Card(
            "Perplexity at α = 1",
            view.cell(top, "ppl", "alpha1", command),
            "to the FP model; nearer to 1 is better",
        ),
        Card(
            "Same, real text",
            missing if pydoc is None else Cell(f"{pydoc:.4f}×", interval),
            "CPython's documentation; nearer to 1 is better",
        ),
        Card(
            "Arithmetic at α = 1",
            view.cell(top, "arithmetic", "alpha1", command),
            "problems answered; what α = 0 answers is wanted",
        ),
        Card(
            "Density of private",
            missing
            if density is None
            else Cell(f"{100 * density:.2f}%", _figure(top, "bits_per_weight", "bits per weight")),
            "share of the weights it touches; lower is better",
        ),
        Card(
            "Native calls",
            missing
            if calls is None or expected is None
            else Cell(f"{calls:,.0f}", f"of {expected:,.0f} expected", bad=calls != expected),
            "must be equal: our kernel did the work",
        ),
        Card(
            "Time",
            missing if seconds is None else Cell(f"{seconds:,.0f} s"),
            "the run that wrote this record; lower is better",
        ),
    ]


def share(pair: tuple[int, int] | None, missing: Cell, bad: bool = False) -> Cell:
    """``k/n`` with its interval, or ``missing``; with ``bad``, any count above 0 is marked."""
    if pair is None or pair[1] == 0:
        return missing
    made = view.proportion(*pair)
    return Cell(made.text, made.detail, bad=bad and pair[0] > 0)


def _ratio(way: Way, value: str, reference: str) -> float | None:
    above, below = way.number(value), way.number(reference)
    return above / below if above is not None and below else None


def _figure(way: Way, key: str, unit: str) -> str:
    value = way.number(key)
    return "" if value is None else f"{value:.3f} {unit}"
