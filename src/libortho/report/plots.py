"""The report's plots, as inline SVG whose colours are the page's own (light and dark)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from libortho.privacy.exposure import NULL_MEAN_BITS
from libortho.report.view import STATES, Way

INK, FAINT, GATE = "#010101", "#020202", "#030303"
MEMBERS, CONTROLS = "#040404", "#050505"
WAY_COLOURS = ("#060606", "#070707", "#080808", "#090909")
# Stand-ins that matplotlib accepts; each is replaced by a variable of the style sheet.
VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    GATE: "var(--bad)",
    MEMBERS: "var(--accent)",
    CONTROLS: "var(--muted)",
    **{colour: f"var(--way-{i})" for i, colour in enumerate(WAY_COLOURS)},
}
LINES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D")

STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def training(found: Sequence[Way], ident: str) -> Markup | None:
    """Loss and recall over training steps, one line per way; None where no way has a curve."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 2.9), layout="constrained")
        loss, recall = figure.subplots(1, 2)
        drawn = 0
        for index, way in enumerate(found):
            colour = WAY_COLOURS[index % len(WAY_COLOURS)]
            for order, (run, curve) in enumerate(way.curves().items()):
                for axes, key, factor in ((loss, "loss", 1.0), (recall, "recall", 100.0)):
                    points = [
                        (float(step), factor * float(value))
                        for point in curve
                        if isinstance(step := point.get("step"), int | float)
                        and isinstance(value := point.get(key), int | float)
                    ]
                    if not points:
                        continue
                    drawn += len(points)
                    axes.plot(
                        *zip(*points, strict=True),
                        color=colour,
                        linestyle=LINES[(index + order) % len(LINES)],
                        marker=MARKS[index % len(MARKS)] if len(points) <= 40 else None,
                        markersize=3.5,
                        linewidth=1.7,
                        label=f"{way.name}: {run}" if run else way.name,
                    )
        if not drawn:
            return None
        loss.set(title="Training loss", xlabel="step", ylabel="nats per secret token")
        if all(value > 0 for line in loss.lines for value in line.get_ydata()):
            loss.set_yscale("log")
            loss.yaxis.set_major_formatter("{x:g}")
            loss.yaxis.set_minor_formatter(NullFormatter())
        recall.set(title="Secrets recalled at α = 1", xlabel="step", ylabel="%", ylim=(-3, 105))
        for axes in (loss, recall):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(loss)
        return svg(figure, ident, "Training loss and recall over steps, by way")


def exposures(found: Sequence[Way], ident: str) -> Markup | None:
    """Histograms of exposure, members against controls, at α = 0 and α = 1 for every way."""
    shown = [way for way in found if any(way.scores("exposure", s) for s in ("alpha0", "alpha1"))]
    if not shown:
        return None
    every = [
        value
        for way in shown
        for state in ("alpha0", "alpha1")
        for group in way.scores("exposure", state) or ()
        for value in group
    ]
    low, high = min(0.0, *every), max(1.0, *every)
    bins = [low + (high - low) * i / 16 for i in range(17)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 1.75 * len(shown) + 0.5), layout="constrained")
        grid = figure.subplots(len(shown), 2, sharex=True, squeeze=False)
        for row, way in zip(grid, shown, strict=True):
            for axes, state in zip(row, ("alpha0", "alpha1"), strict=True):
                _histogram(axes, way, state, bins)
        for axes in grid[-1]:
            axes.set_xlabel("exposure in bits")
        handles, labels = grid[0][0].get_legend_handles_labels()
        if not handles:
            handles, labels = grid[0][1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=8.5)
        return svg(figure, ident, "Exposure of members and controls at α = 0 and α = 1, by way")


def perplexities(found: Sequence[Way], gates: Mapping[str, float], ident: str) -> Markup | None:
    """Bars of perplexity over FP for each way and state; None where no way has the figures."""
    states = [state for state in STATES if state != "fp"]
    shown = [way for way in found if any(way.ratio(state) is not None for state in states)]
    if not shown:
        return None
    ratios = [ratio for way in shown for s in states if (ratio := way.ratio(s)) is not None]
    with matplotlib.rc_context(STYLE):
        marked: set[float] = set()
        figure = Figure(figsize=(9.4, 1.35 * len(shown) + 0.7), layout="constrained")
        grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)
        for way, axes in zip(shown, grid[:, 0], strict=True):
            colour = WAY_COLOURS[list(found).index(way) % len(WAY_COLOURS)]
            axes.set_title(way.name)
            present = [state for state in states if way.has(state)]
            for place, state in enumerate(present):
                ratio = way.ratio(state)
                if ratio is not None:
                    axes.barh(place, ratio - 1, left=1, height=0.62, color=colour, alpha=0.8)
                text = "not in the record" if ratio is None else f"{ratio:.4f}×"
                axes.annotate(
                    text,
                    (max(ratio or 1.0, 1.0), place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                )
            axes.set_yticks(range(len(present)), [STATES[state] for state in present])
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.axvline(1, color=INK, linewidth=1)
            if (gate := gates.get(way.name)) is not None:
                line = axes.axvline(gate, color=GATE, linewidth=1.2, linestyle="--")
                if gate not in marked:
                    line.set_label(f"gate for α = 1: {gate:g}×")
                marked.add(gate)
        low, high = min(1.0, *ratios), max(1.0, *ratios, *marked)
        if high / low > 2:
            grid[-1][0].set_xscale("log")
            grid[-1][0].set_xlim(low * 0.97, high * (high / low) ** 0.12)
        else:
            span = max(high - low, 0.005)
            grid[-1][0].set_xlim(low - 0.03 * span, high + 0.14 * span)
        grid[-1][0].set_xlabel("perplexity ÷ perplexity of the FP model")
        if marked:
            figure.legend(loc="outside upper right", fontsize=8.5)
        return svg(figure, ident, "Perplexity of each state over that of the FP model, by way")


def _histogram(axes: Axes, way: Way, state: str, bins: list[float]) -> None:
    axes.set_title(f"{way.name}, {STATES[state]}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    scores = way.scores("exposure", state)
    if scores is None:
        axes.text(0.5, 0.5, "not in the record", transform=axes.transAxes, ha="center")
        return
    members, controls = scores
    if controls:
        axes.hist(
            controls, bins, color=CONTROLS, alpha=0.55, label=f"controls, n = {len(controls)}"
        )
    axes.hist(
        members,
        bins,
        histtype="step",
        linewidth=1.8,
        color=MEMBERS,
        label=f"members, n = {len(members)}",
    )
    axes.axvline(
        NULL_MEAN_BITS,
        color=INK,
        linewidth=1,
        linestyle=":",
        label=f"mean if never seen: {NULL_MEAN_BITS:.2f} bits",
    )


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8.5)


def svg(figure: Figure, ident: str, label: str) -> Markup:
    """The figure as an accessible ``<svg>`` element with ids of its own and the page's colours."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": ident}):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(\sid=")', rf"\1{ident}-", text)
    text = re.sub(r'(url\(#|xlink:href="#)', rf"\1{ident}-", text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    # The markup is matplotlib's; every text in it went through matplotlib's own XML escaping.
    return Markup(text)
