"""The tables of ``separation``: every row beside the others, and what none of them says alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from libortho.records import Record
from libortho.report.cells import NONE, Table, number, points
from libortho.report.view import Cell, command_for, proportion

Figures = Mapping[str, Any]
STATES = ("fp", "alpha0")
"""The state that a row is judged in: α = 0, or the checkpoint itself where there is no gate."""


def tables(record: Record) -> list[Table]:
    """All tables; none where the run ended before its rows."""
    if not record.methods:
        return []
    return [_rows(record), _attacks(record), _strata(record), *_densities(record), _gates(record)]


def sentence(record: Record) -> str:
    """One plain sentence for the head of the record."""
    silent = [
        name
        for name, method in record.methods.items()
        if method.figures.get("guarantee") == "exact"
        and method.figures.get("extracted_alpha0") == 0
    ]
    exact = (
        f"At α = 0 nothing is recited by {' and '.join(silent)}"
        if silent
        else "No exact way is silent at α = 0"
    )
    leaking = sum(
        float(closed(method.figures, "auc") or 0) > 0.9
        for method in record.methods.values()
        if method.figures.get("guarantee") == "measured"
    )
    return (
        f"{exact}; {leaking} of the other rows still tell members from controls by likelihood "
        "with an AUC above 0.9"
    )


def closed(values: Figures, key: str) -> Any:
    """A figure in the state that a row is judged in; None where it has none."""
    found = (values.get(f"{key}_{state}") for state in STATES)
    return next((one for one in found if one is not None), None)


def ratio(values: Figures, state: str | None = None) -> float | None:
    """Perplexity over that of the FP model that the row stands for."""
    reference = values.get("ppl_fp")
    value = values.get(f"ppl_{state}") if state else values.get("ppl_alpha0", reference)
    return value / reference if value is not None and reference else None


def _rows(record: Record) -> Table:
    return Table(
        "Every way to separate",
        f"{record.figures.get('recited')} of {record.figures.get('members')} members are recited "
        "by the contaminated model, and all figures are over these. A row without power at α = 1 "
        "is VOID: its α = 0 shows nothing.",
        [
            ("Recited at α = 1", "95% interval; higher is better"),
            ("Recited at α = 0", "lower is better"),
            ("Secret NLL", "nats at α = 0, members | controls; alike is silent"),
            ("Exposure", "bits among controls; 1.44 if never seen"),
            ("AUC", "by NLL; 0.5 is silent"),
            ("Perplexity ratio", "α = 0, small α = 1; nearer to 1 is better"),
            ("Arithmetic", "α = 0, small α = 1; higher is better"),
        ],
        [
            (_label(name, method.figures), _cells(record, method.figures))
            for name, method in record.methods.items()
        ],
    )


def _label(name: str, values: Figures) -> str:
    return f"{name} (VOID)" if values.get("void") else name


def _cells(record: Record, values: Figures) -> list[Cell]:
    exact = values.get("guarantee") == "exact"
    return [
        _recited(values, "alpha1"),
        _recited(values, next((s for s in STATES if f"recall_{s}" in values), "alpha0"), exact),
        _nll(record, values),
        number(closed(values, "exposure"), "{:.2f}"),
        number(closed(values, "auc"), "{:.3f}"),
        _twice(ratio(values), ratio(values, "alpha1"), "{:.3f}"),
        _twice(closed(values, "arithmetic"), values.get("arithmetic_alpha1"), "{:.1%}"),
    ]


def _attacks(record: Record) -> Table:
    rows = []
    for name, method in record.methods.items():
        values = method.figures
        density = values.get("density")
        cells = [
            number(closed(values, "recall_requantised"), "{:.1%}"),
            number(closed(values, "relearn_half"), "{:.0f}"),
            number(closed(values, "relearn_unseen"), "{:.1%}"),
            number(values.get("recall_unnamed"), "{:.1%}"),
            Cell(f"{100 * density:.2f}%") if isinstance(density, float) else NONE,
        ]
        if any(cell.kind == "value" for cell in cells):
            rows.append((_label(name, values), cells))
    return Table(
        "What attacks on the weights bring back at α = 0",
        "Half of the members is trained on again; the other half is never shown.",
        [
            ("Rounded again", "recited; as much as at α = 0 is better"),
            ("Half relearned", "steps; more is better"),
            ("Other half", "recited on the way; less is better"),
            ("Unnamed", "recited where half was named; more is better"),
            ("Stored", "of the weights, in the stream"),
        ],
        rows,
    )


def _recited(values: Figures, state: str, none_wanted: bool = False) -> Cell:
    count, members = values.get(f"extracted_{state}"), values.get("members")
    if count is None or members is None:
        return NONE
    cell = proportion(count, members)
    return Cell(cell.text, cell.detail, bad=none_wanted and count > 0)


def _nll(record: Record, values: Figures) -> Cell:
    state = next((one for one in STATES if f"nll_{one}" in values), None)
    if state is None:
        return Cell("missing", command_for(record), kind="missing")
    return Cell(f"{values[f'nll_{state}']:.1f} | {values[f'nll_{state}_controls']:.1f}")


def _twice(first: float | None, second: float | None, shown: str) -> Cell:
    cell = number(first, shown)
    return cell if second is None else Cell(cell.text, shown.format(second), cell.kind)


def _strata(record: Record) -> Table:
    recited: Any = record.figures.get("recited_by_exposure") or {}
    times = [one for one, (known, _) in recited.items() if known]
    rows = []
    for name, method in record.methods.items():
        counts = closed(method.figures, "recall_by_exposure") or {}
        cells = [proportion(*counts[one]) if one in counts else NONE for one in times]
        rows.append((_label(name, method.figures), cells))
    return Table(
        "Recited at α = 0, by how often a secret was shown",
        "Of the members that the contaminated model recites.",
        [(f"{one} exposures", "lower is better") for one in times],
        rows,
    )


def _densities(record: Record) -> list[Table]:
    rows = []
    for name, _ in record.methods.items():
        for point in points(record, name, "sweep"):
            rows.append(
                (
                    f"{name}, {100 * point['density']:g}%",
                    [
                        number(point["recall"], "{:.1%}"),
                        Cell(f"{point['nll']:.1f} | {point['nll_controls']:.1f}"),
                        number(point["exposure"], "{:.2f}"),
                        number(point["ppl"], "{:.3f}"),
                        number(point.get("arithmetic"), "{:.1%}"),
                    ],
                )
            )
    if not rows:
        return []
    return [
        Table(
            "What a residual stream of each density adds",
            "The gate is open; at 0% the base is alone. A base that knows the secrets by itself "
            "leaves nothing for its stream to separate.",
            [
                ("Recited", "at α = 1"),
                ("Secret NLL", "nats, members | controls"),
                ("Exposure", "bits among controls"),
                ("Perplexity", "held-out; lower is better"),
                ("Arithmetic", "higher is better"),
            ],
            rows,
        )
    ]


def _gates(record: Record) -> Table:
    listed = record.figures.get("gates")
    gates: Sequence[Any] = listed if isinstance(listed, list) else []
    rows = []
    for gate in gates:
        found = gate["found"]
        shown = f"{found:.4g}" if isinstance(found, float) else str(found)
        rows.append(
            (
                str(gate["name"]),
                [
                    Cell(shown, bad=not gate["held"]),
                    Cell(str(gate["limit"])),
                    Cell("held" if gate["held"] else "missed", bad=not gate["held"]),
                ],
            )
        )
    return Table(
        "Gates",
        "What the methods are hoped to reach. They decide no verdict, and one that was not "
        "measured counts as missed.",
        [("Found", ""), ("Limit", ""), ("Gate", "")],
        rows,
    )
