"""The plots of an audit: AUCs with intervals, member and control histograms, ROC, relearning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from libortho.privacy.attacks import ATTACKS
from libortho.privacy.exposure import NULL_MEAN_BITS
from libortho.privacy.roc import roc_curve
from libortho.report.audit import AuditState
from libortho.report.plots import (
    CONTROLS,
    FAINT,
    INK,
    LINES,
    MARKS,
    MEMBERS,
    STYLE,
    WAY_COLOURS,
    svg,
)

TELLING = ("loss", "zlib", "min-k", "min-k++", "reference", "lira", "gradient")
WORDS: Mapping[str, str] = {
    "aucs": (
        "How well each measure tells members from controls, with 95% intervals. At the judged "
        "state every interval should hold 0.5; far to the right means known, far to the left "
        "means tampered with."
    ),
    "histograms": (
        "What a secret costs the model in nats, and how far it stands out in bits. Where nothing "
        "should be known the outline of the members should lie on the grey of the controls."
    ),
    "rocs": (
        "Share of members caught against share of controls falsely flagged, for every threshold: "
        "a curve along the diagonal is good, one that hugs the upper left corner is a leak."
    ),
    "relearning": (
        "An adapter is trained on one half of the secrets. Good is a curve as slow as that of the "
        "model that never saw them, and an unseen half that stays at zero."
    ),
}


def aucs(found: Sequence[AuditState], ident: str) -> Markup | None:
    """One row per measure, one mark with its interval per state."""
    rows = list(
        dict.fromkeys(
            (name, key)
            for name in ATTACKS
            for state in found
            for key in state.attacks.get(name, {})
            if key.endswith("AUC")
        )
    )
    if not rows:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 0.235 * len(rows) + 1.0), layout="constrained")
        axes = figure.subplots()
        step = 0.55 / max(1, len(found))
        for index, state in enumerate(found):
            colour = WAY_COLOURS[index % len(WAY_COLOURS)]
            for place, (name, key) in enumerate(rows):
                value = state.number(name, key)
                if value is None:
                    continue
                low, high = (state.number(name, key, part) or 0.0 for part in ("low", "high"))
                y = place + step * (index - (len(found) - 1) / 2)
                axes.plot([low, high], [y, y], color=colour, linewidth=1.6, alpha=0.7)
                axes.plot(
                    [value],
                    [y],
                    color=colour,
                    marker=MARKS[index % len(MARKS)],
                    markersize=4.5,
                    linestyle="none",
                    label=state.label if place == 0 else None,
                )
        axes.axvline(0.5, color=INK, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(rows)), [_name(name, key) for name, key in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("AUC, members against controls")
        figure.legend(loc="outside upper right", ncols=len(found), fontsize=8.5)
        return svg(figure, ident, "AUC of every measure with its interval, by state")


def histograms(found: Sequence[AuditState], ident: str) -> Markup | None:
    """NLL above, exposure below; one column a state."""
    kinds = [
        (name, label)
        for name, label in (("loss", "NLL of the secret in nats"), ("exposure", "exposure in bits"))
        if any(state.scores(name) for state in found)
    ]
    if not kinds:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 2.0 * len(kinds) + 0.4), layout="constrained")
        grid = figure.subplots(len(kinds), len(found), sharex="row", squeeze=False)
        for row, (name, label) in zip(grid, kinds, strict=True):
            every = [
                value for state in found for half in state.scores(name) or () for value in half
            ]
            low, high = min(0.0, *every), max(1.0, *every)
            bins = [low + (high - low) * i / 24 for i in range(25)]
            for axes, state in zip(row, found, strict=True):
                axes.set_title(state.label)
                axes.set_xlabel(label)
                axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
                scores = state.scores(name)
                if scores is None:
                    axes.text(0.5, 0.5, "not in the record", transform=axes.transAxes, ha="center")
                    continue
                members, controls = scores
                axes.hist(controls, bins, color=CONTROLS, alpha=0.55, label="controls")
                axes.hist(
                    members, bins, histtype="step", linewidth=1.8, color=MEMBERS, label="members"
                )
                if name == "exposure":
                    axes.axvline(NULL_MEAN_BITS, color=INK, linewidth=1, linestyle=":")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8.5)
        return svg(figure, ident, "NLL and exposure of members and controls, by state")


def rocs(found: Sequence[AuditState], ident: str) -> Markup | None:
    """One panel a state, one curve a membership attack."""
    names = [name for name in TELLING if any(state.scores(name) for state in found)]
    if not names:
        return None
    with matplotlib.rc_context(STYLE):
        columns = max(2, len(found))
        figure = Figure(figsize=(9.4, 7.4 / columns + 0.5), layout="constrained")
        panels = figure.subplots(1, columns, squeeze=False)[0]
        for axes in panels[len(found) :]:
            axes.set_axis_off()
        for axes, state in zip(panels, found, strict=False):
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
            for index, name in enumerate(names):
                scores = state.scores(name)
                if scores is None:
                    continue
                axes.plot(
                    *zip(*roc_curve(*scores), strict=True),
                    color=WAY_COLOURS[index % len(WAY_COLOURS)],
                    linestyle=LINES[(index + index // len(WAY_COLOURS)) % len(LINES)],
                    linewidth=1.6,
                    label=ATTACKS[name].title,
                )
            axes.set(title=state.label, xlabel="false positives", aspect="equal")
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        panels[0].set_ylabel("members caught")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
        return svg(figure, ident, "ROC of the membership attacks, by state")


def relearning(found: Sequence[AuditState], ident: str) -> Markup | None:
    """Recall of both halves over steps, for the model and its reference, by judged state."""
    runs: dict[str, tuple[list[float], list[float]]] = {}
    for state in found:
        for name, curves in state.relearned().items():
            runs.setdefault(state.label if name == "model" else "never exposed", curves)
    if not runs:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 2.7), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for index, (label, curves) in enumerate(runs.items()):
            for axes, curve in zip(panels, curves, strict=True):
                axes.plot(
                    range(len(curve)),
                    [100 * value for value in curve],
                    color=WAY_COLOURS[index % len(WAY_COLOURS)],
                    linestyle=LINES[index % len(LINES)],
                    linewidth=1.8,
                    label=label,
                )
        for axes, title in zip(
            panels, ("The half that is trained on", "The half that is not"), strict=True
        ):
            axes.set(title=title, xlabel="optimiser steps", ylim=(-3, 105))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("% recited")
        panels[0].legend(fontsize=8.5)
        return svg(figure, ident, "Recall while relearning, model and reference")


def _name(attack: str, key: str) -> str:
    title = ATTACKS[attack].title
    part = key.removesuffix("AUC").rstrip(": ")
    return f"{title}, {part}" if part else title
