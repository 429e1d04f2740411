"""The tables and plot of ``unlearning``: TOFU's metrics, one row a model, and one a tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from libortho import records
from libortho.records import Method, Record
from libortho.report.cells import NONE, Table, number
from libortho.report.plots import LINES, WAY_COLOURS
from libortho.report.view import Cell

ROWS: Mapping[str, str] = {
    "tuned": "tuned on all, FP",
    "retrained": "never saw them, FP",
    "alpha0": "private stream, α = 0",
    "alpha1": "private stream, α = 1",
    "forget": "forget on tuned, α = 0",
    "npo": "NPO on tuned",
}
WORDS = (
    "How the truth ratios on the forget set are spread, one line a model: below 1 the right answer "
    "is likelier than wrong ones. A model that has forgotten runs along the one that never saw the "
    "rows; forget quality is the p of the largest distance between the two."
)


def tables(record: Record) -> list[Table]:
    """One row a model, and where there are tenants one for each that is open."""
    rows = []
    for name, method in _whole(record).items():
        values = method.figures
        rows.append(
            (
                ROWS.get(name, name),
                [
                    _quality(values, itself=name == "retrained"),
                    *(_with_ends(values, f"forget_{one}") for one in ("rouge", "probability")),
                    _with_ends(values, "forget_truth"),
                    _with_ends(values, "utility"),
                ],
            )
        )
    return [
        Table(
            "What is left of the rows to forget, and of everything else",
            f"{record.config.get('data')}, {record.config.get('split')}; {record.n} questions to "
            f"forget; utility over {_others(record)}. Metrics of TOFU (arXiv 2401.06121), 95% "
            "bootstrap intervals over questions; a p-value has none.",
            [
                ("Forget quality", "p of a KS test against the model that never saw them; high"),
                ("ROUGE-L", "recall on the forget set; as never seen"),
                ("Probability", "of a token of the answers; as never seen"),
                ("Truth ratio", "min(R, 1/R); as never seen"),
                ("Model utility", "everything else; high is good"),
            ],
            rows,
        ),
        *_tenants(record),
    ]


def _tenants(record: Record) -> list[Table]:
    tenants = [name for name in _parts(record) if name in record.methods]
    if not tenants:
        return []
    opened = {
        "alpha0": "all closed",
        **{name: f"{name} open" for name in tenants},
        "tenants": "all open",
    }
    rows = []
    for state, label in opened.items():
        values = record.methods[state].figures
        cells = [_part(values, name, itself=state == "alpha0") for name in tenants]
        rows.append((label, [*cells, _with_ends(values, "utility")]))
    return [
        Table(
            "One stream a tenant, on one base",
            "ROUGE-L on the rows of each tenant, with 95% bootstrap intervals over questions; p is "
            "of a KS test between the truth ratios on them and those with all streams closed, not "
            "yet adjusted for the number of tenants.",
            [
                *(
                    (f"Rows of {name}", "high where it is open, else as all closed")
                    for name in tenants
                ),
                ("Model utility", "everything else; high is good"),
            ],
            rows,
        )
    ]


def sentence(record: Record) -> str:
    """What the private stream left behind, and whether tenants kept apart."""
    closed, opened = (record.methods[name].figures for name in ("alpha0", "alpha1"))
    never = record.methods["retrained"].figures
    return (
        f"Closing the stream leaves a model whose answers pass for those of one that never saw the "
        f"rows (forget quality {closed['forget_quality']:.2g}; {opened['forget_quality']:.2g} with "
        f"the stream open), at {closed['utility']:.3f} utility against {never['utility']:.3f}"
        f"{_apart(record)}"
        if record.verdict == "PASS"
        else f"Closing the stream leaves forget quality {closed['forget_quality']:.2g} and utility "
        f"{closed['utility']:.3f} against {never['utility']:.3f}: {record.reason.removesuffix('.')}"
    )


def _apart(record: Record) -> str:
    number = len(_parts(record))
    told = (
        f"; each of {number} tenants' streams answers its own rows, and forget quality cannot tell "
        "its answers to the others' rows from those with all streams closed"
    )
    return told if number else ""


def plot(record: Record) -> Figure | None:
    """Empirical distributions of the truth ratios on the forget set."""
    figure = Figure(figsize=(9.4, 3.3), layout="constrained")
    axes = figure.subplots()
    for index, (name, method) in enumerate(_whole(record).items()):
        raw: Any = records.load_raw(record, method.raw).get("forget")
        if raw:
            ratios = np.sort(raw["truth_ratio"])
            axes.step(
                ratios,
                100 * np.arange(1, len(ratios) + 1) / len(ratios),
                where="post",
                label=ROWS.get(name, name),
                color=WAY_COLOURS[index % len(WAY_COLOURS)],
                linestyle=LINES[index % len(LINES)],
                linewidth=1.7,
            )
    if not axes.lines:
        return None
    axes.set(xscale="log", xlabel="truth ratio R", ylabel="questions at or below it, %")
    # Powers would be set as mathematics, which the page shows as source.
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8, loc="upper left")
    return figure


def _parts(record: Record) -> Mapping[str, int]:
    """Rows of each tenant; none where the record is of a run without them."""
    found: Any = record.config.get("tenants", {})
    return cast(Mapping[str, int], found)


def _whole(record: Record) -> Mapping[str, Method]:
    """The models that no tenant's stream is open in."""
    tenants = {"tenants", *_parts(record)}
    return {name: method for name, method in record.methods.items() if name not in tenants}


def _part(values: Mapping[str, Any], tenant: str, *, itself: bool) -> Cell:
    shown = _with_ends(values, f"{tenant}_rouge")
    p = values[f"{tenant}_forget_quality"]
    return Cell(shown.text, f"{shown.detail}, {'itself' if itself else f'p = {p:.2g}'}")


def _quality(values: Mapping[str, Any], *, itself: bool) -> Cell:
    if itself:
        return Cell("1", "itself", kind="absent")
    p = values.get("forget_quality")
    if not isinstance(p, float):
        return NONE
    return Cell(f"{p:.2g}", f"D = {values['distance']:.2f}, n = {values['forget_n']}")


def _with_ends(values: Mapping[str, Any], key: str) -> Cell:
    shown = number(values.get(key), "{:.3f}")
    ends: Sequence[float] | None = values.get(f"{key}_interval")
    return Cell(shown.text, f"[{ends[0]:.3f}, {ends[1]:.3f}]") if ends else shown


def _others(record: Record) -> str:
    probes: Any = record.config.get("probes")
    return ", ".join(f"{name} ({n})" for name, n in probes.items() if name != "forget")
