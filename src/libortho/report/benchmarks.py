"""The table and plot of ``benchmarks``: tasks of lm-eval, one column a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from libortho.records import Record
from libortho.report.cells import NONE, Table
from libortho.report.plots import INK, WAY_COLOURS
from libortho.report.view import STATES, Cell

SHOWN: Mapping[str, str] = {
    "acc": "higher is better",
    "acc_norm": "higher is better",
    "exact_match": "higher is better",
    "word_perplexity": "lower is better",
    "byte_perplexity": "lower is better",
}
WORDS = (
    "Each metric of each state over that of the FP model: bars at 1 are as good, and for a "
    "perplexity a longer bar is worse. What was not run here is listed below with its command."
)


def tables(record: Record) -> list[Table]:
    """One row a task and metric."""
    rows = [
        (
            f"{task}: {metric}",
            [_cell(record, state, task, metric) for state in record.methods],
        )
        for task, metric in _measured(record)
    ]
    return [
        Table(
            "Tasks of lm-evaluation-harness",
            f"lm-eval {record.config.get('lm_eval')}, without few-shot examples unless a task has "
            "its own; ± one standard error, as lm-eval gives it. libortho_arithmetic and "
            "libortho_heldout are made from what libortho ships, and are no task of the hub's.",
            [(STATES.get(state, state), "") for state in record.methods],
            rows,
        )
    ]


def sentence(record: Record) -> str:
    """How many tasks were run, and how many were not."""
    run = {task for task, _ in _measured(record)}
    left = f"; {len(record.not_run)} were not run here" if record.not_run else ""
    return f"lm-eval ran {len(run)} tasks through every state of the gate{left}"


def plot(record: Record) -> Figure | None:
    """Bars of the ratio to FP."""
    measured = _measured(record)
    states = [state for state in record.methods if state != "fp"]
    if not measured or "fp" not in record.methods:
        return None
    figure = Figure(figsize=(9.4, 1.2 + 0.6 * len(measured)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(states)
    for index, state in enumerate(states):
        for place, (task, metric) in enumerate(measured):
            full = _values(record, "fp", task).get(metric)
            ours = _values(record, state, task).get(metric)
            if full and ours is not None:
                axes.barh(
                    place + (index - (len(states) - 1) / 2) * height,
                    ours / full,
                    height=0.9 * height,
                    color=WAY_COLOURS[index % len(WAY_COLOURS)],
                    label=STATES.get(state, state) if not place else None,
                )
    axes.axvline(1.0, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(measured)), [f"{task}: {metric}" for task, metric in measured])
    axes.invert_yaxis()
    axes.set(xlabel="× FP")
    figure.legend(loc="outside upper center", ncols=len(states), fontsize=8)
    return figure


def _measured(record: Record) -> list[tuple[str, str]]:
    first = next(iter(record.methods), None)
    if first is None:
        return []
    tasks: Any = record.methods[first].figures.get("tasks", {})
    return [
        (task, metric) for task, values in tasks.items() for metric in SHOWN if metric in values
    ]


def _values(record: Record, state: str, task: str) -> Mapping[str, Any]:
    tasks: Any = record.methods[state].figures.get("tasks", {})
    found: Mapping[str, Any] = tasks.get(task, {})
    return found


def _cell(record: Record, state: str, task: str, metric: str) -> Cell:
    values = _values(record, state, task)
    if metric not in values:
        return NONE
    error = values.get(f"{metric}_stderr")
    spread = f"± {error:.3f}, " if isinstance(error, float) else ""
    return Cell(f"{values[metric]:.4g}", f"{spread}n = {values['n']}")
