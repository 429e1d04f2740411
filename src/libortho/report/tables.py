"""Tables of experiments whose rows are no states of a gate, and the sentence that heads each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from libortho.records import Record
from libortho.report import benchmarks, separation, unlearning
from libortho.report.cells import NONE, Table, number, points
from libortho.report.view import Cell, command_for

VOID = Cell("VOID", "rounding lost too little to tell", kind="absent")


def tables(record: Record) -> list[Table]:
    """The tables of a record; none for an experiment that has tables of another kind."""
    return _TABLES[record.experiment](record) if record.experiment in _TABLES else []


def sentence(record: Record) -> str:
    """One plain sentence for the head of the record."""
    if record.verdict == "VOID":
        return f"This run shows nothing, neither way: {record.reason}"
    return f"{_SENTENCES[record.experiment](record)}."


def _genius(record: Record) -> list[Table]:
    full = number(record.figures.get("accuracy_fp"), "{:.1%}").text
    rows: list[tuple[str, Sequence[Cell]]] = []
    for name, method in record.methods.items():
        values = method.figures
        lost = VOID if values.get("void") else NONE
        rows.append((f"{name}, alone", [*_accuracy(record, values), lost, NONE]))
        for point in points(record, name, "repaired"):
            label = f"{name} + {100 * point['density']:g}% repair"
            cells = [*_accuracy(record, point), _share(record, point), _p(point.get("p"))]
            rows.append((label, cells))
    return [
        Table(
            "Arithmetic that rounding costs, and repair brings back",
            f"Greedy exact match on {record.n} generated problems; the FP model answers {full}. "
            "ρ is the share of the loss that came back, with a paired bootstrap interval; p is "
            "McNemar's against the base alone.",
            [
                ("Problems answered", "higher is better"),
                ("Perplexity ratio", "to FP; nearer to 1 is better"),
                ("Recovered fraction ρ", "1 is all of it"),
                ("p", "two-sided, exact"),
            ],
            rows,
        )
    ]


def _sweep(record: Record) -> list[Table]:
    rows = []
    for name in record.methods:
        for point in points(record, name, "sweep"):
            cells = [
                _share(record, point, "recall"),
                Cell(f"{point['nll']:.1f} | {point['nll_controls']:.1f}"),
                Cell(f"{point['exposure']:.2f}"),
                Cell(f"{point['ppl']:.3f}"),
                _share(record, point, "arithmetic"),
            ]
            rows.append((f"{name}, α = {point['alpha']:g}", cells))
    return [
        Table(
            "From closed to open",
            "The public repair stream stays open at 1; α is that of the private stream. Between 0 "
            "and 1 nothing is promised: look at likelihood and exposure, not at recitation alone.",
            [
                ("Recited", "members, greedy"),
                ("Secret NLL", "nats, members | controls; alike is silent"),
                ("Exposure", "bits, among controls; 1.44 if never seen"),
                ("Perplexity", "held-out; lower is better"),
                ("Arithmetic", "higher is better"),
            ],
            rows,
        )
    ]


def _dp(record: Record) -> list[Table]:
    rows = []
    for name, method in record.methods.items():
        values = method.figures
        if "epsilon_lower" not in values:
            continue
        spent, proved = values.get("epsilon"), values["epsilon_lower"]
        rows.append(
            (
                name,
                [
                    number(spent, "{:.3f}")
                    if spent is not None
                    else Cell("none", "no noise, no privacy"),
                    number(proved, "{:.3f}"),
                    *_leaks(values),
                ],
            )
        )
    ablation = [
        (f"σ = {point['sigma']:g}", _leaks(point))
        for point in points(record, "weight-noise", "ablation")
    ]
    leaks = [
        ("Recited", "members, greedy"),
        ("AUC", "members against controls by NLL; 0.5 is silent"),
        ("Secret NLL", "nats, members | controls"),
        ("Perplexity", "held-out; lower is better"),
    ]
    return [
        Table(
            "DP-SGD on the private stream",
            f"The unit is one example, δ = {record.figures.get('delta', 'unknown')}; the support "
            "is public. The attack's bound may not exceed the accountant's ε.",
            [("ε spent", "by the accountant"), ("ε proved", "by the attack"), *leaks],
            rows,
        ),
        Table(
            "Noise on finished weights, which is not differential privacy",
            "An ablation: noise of σ times the spread of the trained values, on the stream that "
            "was trained without protection. Nothing bounds what it gives away.",
            leaks,
            ablation,
        ),
    ]


def _leaks(values: Mapping[str, Any]) -> list[Cell]:
    return [
        number(values.get("recall"), "{:.1%}"),
        number(values.get("auc"), "{:.3f}"),
        Cell(f"{values['nll']:.1f} | {values['nll_controls']:.1f}"),
        number(values.get("ppl"), "{:.3f}"),
    ]


def _accuracy(record: Record, values: Mapping[str, Any]) -> list[Cell]:
    ratio = number(values.get("ppl_ratio"), "{:.4f}×")
    low, high = values.get("ppl_ratio_interval", (None, None))
    detail = "" if low is None else f"[{low:.4f}, {high:.4f}]"
    return [_share(record, values, "accuracy"), Cell(ratio.text, detail, ratio.kind)]


def _share(record: Record, values: Mapping[str, Any], key: str = "recovered") -> Cell:
    value, ends = values.get(key), values.get(f"{key}_interval")
    if value is None:
        return Cell("missing", command_for(record), kind="missing")
    shown = "{:.2f}" if key == "recovered" else "{:.1%}"
    detail = f"[{shown.format(ends[0])}, {shown.format(ends[1])}]" if ends else ""
    return Cell(shown.format(value), detail)


def _p(value: Any) -> Cell:
    return number(value, "{:.2g}")


def _genius_sentence(record: Record) -> str:
    base = next((name for name, one in record.methods.items() if not one.figures["void"]), None)
    found = points(record, base, "repaired") if base else []
    if not found or not isinstance(found[0].get("recovered"), float):
        return "No base lost enough arithmetic to tell what repair brings back"
    first = found[0]
    return (
        f"On {base}, a public stream over {100 * first['density']:g}% of the weights brings back "
        f"{100 * first['recovered']:.0f}% of the arithmetic that rounding cost"
    )


def _sweep_sentence(record: Record) -> str:
    found = [one for name in record.methods for one in points(record, name, "sweep")]
    silent = [one["alpha"] for one in found if one["recall"] == 0]
    leaking = [one["alpha"] for one in found if one["auc"] > 0.9]
    said = f"Nothing is recited up to α = {max(silent):g}" if silent else "Every α recites"
    if not leaking:
        return said
    return f"{said}; members are told from controls by likelihood from α = {min(leaking):g} on"


def _dp_sentence(record: Record) -> str:
    if record.verdict == "PASS":
        return "No attack proved a larger ε than the accountant admits, and this one could have"
    return "The attack proved a larger ε than the accountant admits: the privacy claim is wrong"


_TABLES: Mapping[str, Callable[[Record], list[Table]]] = {
    "genius": _genius,
    "alpha-sweep": _sweep,
    "dp": _dp,
    "separation": separation.tables,
    "unlearning": unlearning.tables,
    "benchmarks": benchmarks.tables,
}
_SENTENCES: Mapping[str, Callable[[Record], str]] = {
    "genius": _genius_sentence,
    "alpha-sweep": _sweep_sentence,
    "dp": _dp_sentence,
    "separation": separation.sentence,
    "unlearning": unlearning.sentence,
    "benchmarks": benchmarks.sentence,
}
