"""The plots of ``performance``: latency against M and against density, bytes per state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from libortho.records import Record
from libortho.report.plots import GATE, LINES, MARKS, MEMBERS, STYLE, WAY_COLOURS, svg
from libortho.report.speed import STATES, kernels

WORDS: Mapping[str, str] = {
    "latencies": (
        "One layer. Left: time against the rows of a batch; the dashed line is the ideal, reading "
        "the INT4 bytes once at the measured bandwidth, whatever the batch. Right: what an open "
        "stream adds to one row, against its density. Lower is better in both."
    ),
    "sizes": "Bytes of the whole model by state, in memory and on disk: lower is better.",
}


def latencies(record: Record, ident: str) -> Markup | None:
    """Latency against M with the ideal line, and against density at M = 1."""
    found = kernels(record)
    if not found:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        names = list(dict.fromkeys(one["name"] for one in found["by_rows"]))
        for index, name in enumerate(name for name in names if "mixed" not in name):
            points = [
                (one["rows"], one["microseconds"])
                for one in found["by_rows"]
                if one["name"] == name
            ]
            _line(left, points, name, index)
        left.axhline(found["ideal_microseconds"], color=GATE, linestyle="--", label="ideal")
        rows = sorted({one["rows"] for one in found["by_rows"]})
        left.set(
            title="Latency against M", xlabel="rows M", ylabel="µs", xscale="log", yscale="log"
        )
        left.set_xticks(rows, [str(one) for one in rows])
        left.xaxis.set_minor_locator(NullLocator())
        left.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        left.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        left.yaxis.set_minor_locator(NullLocator())
        left.legend(fontsize=7.5)
        for index, state in enumerate(("alpha=0", "alpha=1")):
            points = [
                (float(one["name"].split()[-1].rstrip("%")), one["microseconds"])
                for one in found["by_density"]
                if one["name"].startswith(f"{state} at")
            ]
            _line(right, points, f"{state}, M = 1", index)
        right.set(
            title="Latency against density", xlabel="density in %", ylabel="µs", ylim=(0, None)
        )
        right.legend(fontsize=7.5)
        return svg(figure, ident, "Latency of one layer against M and against density")


def sizes(record: Record, ident: str) -> Markup | None:
    """Bars of bytes in memory and on disk."""
    shown = [name for name in STATES if name in record.methods]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 0.42 * len(shown) + 0.9), layout="constrained")
        pair = figure.subplots(1, 2, sharey=True)
        for axes, key, title in zip(
            pair, ("bytes_memory", "bytes_disk"), ("In memory", "On disk"), strict=True
        ):
            values: list[Any] = [record.methods[name].figures[key] for name in shown]
            axes.barh(
                [STATES[name] for name in shown], [one / 1e9 for one in values], color=MEMBERS
            )
            axes.set(title=title, xlabel="GB")
        pair[0].invert_yaxis()
        return svg(figure, ident, "Bytes in memory and on disk, by state")


def _line(axes: Any, points: Sequence[tuple[float, float]], label: str, index: int) -> None:
    if points:
        axes.plot(
            *zip(*sorted(points), strict=True),
            color=WAY_COLOURS[index % len(WAY_COLOURS)],
            linestyle=LINES[(index + index // len(WAY_COLOURS)) % len(LINES)],
            marker=MARKS[(index + index // len(WAY_COLOURS)) % len(MARKS)],
            markersize=3.5,
            linewidth=1.6,
            label=label,
        )
