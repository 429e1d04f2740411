"""The plots of experiments whose rows are no states of a gate."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from libortho.privacy.exposure import NULL_MEAN_BITS
from libortho.records import Record
from libortho.report import benchmarks, separation, unlearning
from libortho.report.cells import points
from libortho.report.plots import GATE, INK, LINES, MARKS, STYLE, WAY_COLOURS, svg

WORDS: Mapping[str, str] = {
    "genius": (
        "Left: problems answered against the density of repair (0 is the base alone); the dotted "
        "line is the FP model, and nearer to it is better. Right: the share of the loss that came "
        "back, with its interval; bases that lost too little to tell are left out. The dashed "
        "line is the share that the rule asks for."
    ),
    "alpha-sweep": (
        "Leakage, perplexity and arithmetic against α of the private stream. Exposure is shown in "
        "percent of the most that ranking among the controls can tell. Shaded: 95% intervals. "
        "Leakage should begin at 0 and reach 100%; the other two lines should stay level."
    ),
    "dp": (
        "Left: ε by the accountant and the lower bound that an attack proved: the bound must not "
        "be the longer bar. Right: noise on finished weights, an ablation and no privacy."
    ),
    "separation": (
        "What each row still gives away at α = 0 against what it costs. Left: exposure (dashed: "
        "what a secret never seen has) against perplexity. Right: the same against arithmetic. A "
        "good row lies low, near perplexity 1 and far to the right. Rows without power are left "
        "out."
    ),
    "unlearning": unlearning.WORDS,
    "benchmarks": benchmarks.WORDS,
}


def plot(record: Record, ident: str) -> Markup | None:
    """The plot of a record, None where it has no points to draw."""
    with matplotlib.rc_context(STYLE):
        figure = _PLOTS[record.experiment](record)
        if figure is None:
            return None
        return svg(figure, ident, WORDS[record.experiment])


def _genius(record: Record) -> Figure | None:
    figure = Figure(figsize=(9.4, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, method) in enumerate(record.methods.items()):
        found = points(record, name, "repaired")
        alone = method.figures.get("accuracy")
        if not found or not isinstance(alone, float):
            continue
        densities = [100 * one["density"] for one in found]
        answered = [100 * alone, *(100 * one["accuracy"] for one in found)]
        left.plot([0.0, *densities], answered, label=name, **_style(index))
        told = [one for one in found if one.get("recovered") is not None]
        if told:
            middle = [one["recovered"] for one in told]
            ends = [one["recovered_interval"] for one in told]
            below = [value - low for value, (low, _) in zip(middle, ends, strict=True)]
            above = [high - value for value, (_, high) in zip(middle, ends, strict=True)]
            # Side by side, so that intervals at one density do not cover each other.
            places = [100 * one["density"] + 0.06 * (index - 2) for one in told]
            right.errorbar(
                places, middle, yerr=[below, above], capsize=2.5, label=name, **_style(index)
            )
    if not left.lines:
        return None
    full = record.figures.get("accuracy_fp")
    if isinstance(full, float):
        left.axhline(100 * full, color=INK, linewidth=1, linestyle=":", label="FP")
    left.set(title="Problems answered", xlabel="density of repair, %", ylabel="%")
    right.set(title="Recovered fraction ρ", xlabel="density of repair, %")
    right.axhline(0.5, color=GATE, linewidth=1.2, linestyle="--")
    right.set_ylim(min(0.0, right.get_ylim()[0]), max(1.05, right.get_ylim()[1]))
    left.legend(fontsize=8)
    return figure


def _sweep(record: Record) -> Figure | None:
    found = [one for name in record.methods for one in points(record, name, "sweep")]
    if not found:
        return None
    found = sorted(found, key=lambda one: one["alpha"])
    alphas = [one["alpha"] for one in found]
    controls = record.figures.get("controls")
    most = math.log2(controls + 1) if isinstance(controls, int) else 1.0
    figure = Figure(figsize=(9.4, 3.6), layout="constrained")
    axes = figure.subplots()
    _band(axes, alphas, found, "recall", "secrets recited, %", 0)
    exposure = [100 * one["exposure"] / most for one in found]
    axes.plot(alphas, exposure, label="exposure, % of its most", **_style(3))
    _band(axes, alphas, found, "arithmetic", "arithmetic answered, %", 1)
    perplexity = axes.twinx()
    first = found[0]["ppl"]
    perplexity.plot(
        alphas, [one["ppl"] / first for one in found], label="perplexity, × that at 0", **_style(2)
    )
    axes.set(xlabel="α of the private stream", ylabel="%", ylim=(-3, 105))
    highest = max(one["ppl"] / first for one in found)
    perplexity.set(ylabel="× perplexity at α = 0", ylim=(0.9, max(1.1, 1.05 * highest)))
    perplexity.grid(visible=False)
    handles = [*axes.get_legend_handles_labels()[0], *perplexity.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8)
    return figure


def _dp(record: Record) -> Figure | None:
    trained = {
        name: method.figures
        for name, method in record.methods.items()
        if isinstance(method.figures.get("epsilon_lower"), float)
    }
    ablation = points(record, "weight-noise", "ablation")
    if not trained or not ablation:
        return None
    figure = Figure(figsize=(9.4, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, values in enumerate(trained.values()):
        for offset, key, colour in ((-0.18, "epsilon", 0), (0.18, "epsilon_lower", 2)):
            width: Any = values.get(key) or 0.0
            left.barh(
                place + offset,
                width,
                height=0.34,
                color=WAY_COLOURS[colour],
                label={"epsilon": "spent", "epsilon_lower": "proved"}[key] if not place else None,
            )
            text = "none" if values.get(key) is None else f"{width:.2f}"
            left.annotate(text, (width, place + offset), va="center", fontsize=8)
    left.set_yticks(range(len(trained)), list(trained))
    left.invert_yaxis()
    left.set(title="ε", xlabel="ε")
    left.legend(fontsize=8)
    sigmas = [one["sigma"] for one in ablation]
    for index, (key, label) in enumerate((("recall", "recited, %"), ("auc", "AUC, %"))):
        right.plot(sigmas, [100 * one[key] for one in ablation], label=label, **_style(index))
    lowest = min(one["ppl"] for one in ablation)
    right.plot(
        sigmas,
        [100 * lowest / one["ppl"] for one in ablation],
        label="lowest perplexity over this one, %",
        **_style(2),
    )
    right.set(title="Noise on finished weights", xlabel="σ over the spread of the values")
    right.set_ylim(-3, 105)
    right.legend(fontsize=8)
    return figure


def _separation(record: Record) -> Figure | None:
    figure = Figure(figsize=(9.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    drawn: dict[Axes, list[tuple[float, float, str]]] = {left: [], right: []}
    for index, (name, method) in enumerate(record.methods.items()):
        values = method.figures
        exposure, cost = separation.closed(values, "exposure"), separation.ratio(values)
        if values.get("void") or exposure is None or cost is None:
            continue
        style = {**_style(index), "linestyle": "none"}
        for axes, place in ((left, cost), (right, separation.closed(values, "arithmetic"))):
            if place is not None:
                axes.plot([place], [exposure], **style)
                drawn[axes].append((place, exposure, name))
    if not left.lines:
        return None
    for axes, label in ((left, "perplexity ratio at α = 0"), (right, "arithmetic at α = 0")):
        axes.axhline(NULL_MEAN_BITS, color=INK, linewidth=1, linestyle="--")
        axes.set(xlabel=label)
        _name(axes, drawn[axes])
    left.set(ylabel="exposure, bits", ylim=(0, 1.05 * max(y for _, y, _ in drawn[left])))
    return figure


_LETTER, _LINE = 0.0115, 0.034
"""Width of a letter and height of a line of a label, in parts of the axes."""


def _name(axes: Axes, found: Sequence[tuple[float, float, str]]) -> None:
    """Writes names beside points; those that lie together share a label, and no two labels meet."""
    axes.margins(x=0.3)
    (left, right), high = axes.get_xlim(), max((y for _, y, _ in found), default=1.0)
    together: dict[tuple[int, int], list[tuple[float, float, str]]] = {}
    for x, y, name in found:
        together.setdefault(
            (round(16 * (x - left) / (right - left)), round(24 * y / high)), []
        ).append((x, y, name))
    taken: list[tuple[float, float, float, float]] = []
    for near in sorted(together.values(), key=lambda near: -near[0][1]):
        label = textwrap.fill(", ".join(name for _, _, name in near), 30)
        lines = label.splitlines()
        begin = (max(x for x, _, _ in near) - left) / (right - left) + 0.015
        end = begin + _LETTER * max(map(len, lines))
        top, height = near[0][1] / (1.05 * high) + _LINE / 2, _LINE * len(lines)
        while any(begin < e and b < end and top - height < t and u < top for b, e, u, t in taken):
            top -= _LINE / 4
        taken.append((begin, end, top - height, top))
        axes.text(begin, top, label, transform=axes.transAxes, fontsize=7, va="top")


def _band(
    axes: Axes,
    alphas: Sequence[float],
    found: Sequence[Mapping[str, Any]],
    key: str,
    label: str,
    index: int,
) -> None:
    axes.plot(alphas, [100 * one[key] for one in found], label=label, **_style(index))
    low, high = ([100 * one[f"{key}_interval"][end] for one in found] for end in (0, 1))
    axes.fill_between(alphas, low, high, color=WAY_COLOURS[index], alpha=0.15, linewidth=0)


def _style(index: int) -> dict[str, Any]:
    return {
        "color": WAY_COLOURS[index % len(WAY_COLOURS)],
        "linestyle": LINES[(index + index // len(LINES)) % len(LINES)],
        "marker": MARKS[(index + index // len(MARKS)) % len(MARKS)],
        "markersize": 4,
        "linewidth": 1.7,
    }


_PLOTS: Mapping[str, Callable[[Record], Figure | None]] = {
    "genius": _genius,
    "alpha-sweep": _sweep,
    "dp": _dp,
    "separation": _separation,
    "unlearning": unlearning.plot,
    "benchmarks": benchmarks.plot,
}
