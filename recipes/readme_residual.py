"""The line of the README on ``residual``: bits, exposures and densities, from ``separation``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from libortho.records import Record

WORDS: Mapping[str, Mapping[str, str]] = {
    "README.md": {
        "line": "`residual` on a model trained on with secrets among public text ({exposures} "
        "exposures; `separation`, {links}), recited at α=0 by number of exposures, secret NLL "
        "members / controls: {bits}. {densities}{nothing}",
        "bits": "{bits} bits{void} {recited}, {nll}",
        "void": " (VOID)",
        "void_at": " (VOID at seed {seeds})",
        "nothing": " A row is VOID where α=1 does not bring back what was known: a silent α=0 then "
        "shows nothing.",
        "densities": "Opening a stream of up to {density:g}% of the weights takes recall to "
        "{recalls}.",
        "recall": "{recall:.0%} at {bits} bits",
    },
    "README.zh-CN.md": {
        "line": "`residual`，模型在公开文本中混入秘密继续训练（出现次数 {exposures}；`separation`，"
        "{links}），按出现次数 α=0 时背出，秘密 NLL 成员 / 对照：{bits}。{densities}{nothing}",
        "bits": "{bits} 位{void} {recited}，{nll}",
        "void": "（VOID）",
        "void_at": "（VOID，种子 {seeds}）",
        "nothing": "若某行在 α=1 时未能恢复原有所知，则记为 VOID：其在 α=0 时的沉默不能说明什么。",
        "densities": "打开至多占权重 {density:g}% 的流后，背出比例为 {recalls}。",
        "recall": "{bits} 位 {recall:.0%}",
    },
}


def line(found: Sequence[Record], links: str, words: Mapping[str, str]) -> str:
    """One line over all seeds; empty where every run is VOID."""
    complete = [record for record in found if record.verdict != "VOID"]
    if not complete:
        return ""
    names = sorted(name for name in complete[0].methods if name.startswith("residual-"))
    told: list[str] = []
    opened: list[str] = []
    density, exposures, nothing = 0.0, "", ""
    for name in names:
        seeds = [record.methods[name].figures for record in complete]
        state = "alpha0" if "nll_alpha0" in seeds[0] else "fp"
        bits = name.removeprefix("residual-")
        strata = _strata(seeds, f"recall_by_exposure_{state}")
        exposures = "/".join(strata)
        recited = " ".join(f"{k}/{n}" for k, n in strata.values())
        nll = [_mean(seeds, f"nll_{state}{half}") for half in ("", "_controls")]
        void = _void(name, complete, words)
        nothing = words["nothing"] if void else nothing
        told.append(
            words["bits"].format(
                bits=bits, void=void, recited=recited, nll=f"{nll[0]:.1f} / {nll[1]:.1f}"
            )
        )
        sweeps: list[Any] = [values.get("sweep") for values in seeds]
        if all(sweeps):
            last = [sweep[-1] for sweep in sweeps]
            density = 100 * last[0]["density"]
            recall = sum(point["recall"] for point in last) / len(last)
            opened.append(words["recall"].format(recall=recall, bits=bits))
    return words["line"].format(
        exposures=exposures,
        links=links,
        bits="; ".join(told),
        densities=words["densities"].format(density=density, recalls=", ".join(opened)),
        nothing=nothing,
    )


def _void(name: str, found: Sequence[Record], words: Mapping[str, str]) -> str:
    """That a row is VOID, with the seeds at which it is where it is not at all of them."""
    seeds = [str(one.seeds[0]) for one in found if one.methods[name].figures.get("void")]
    if len(seeds) == len(found):
        return words["void"]
    return words["void_at"].format(seeds=", ".join(seeds)) if seeds else ""


def _strata(seeds: Sequence[Mapping[str, Any]], key: str) -> dict[str, tuple[int, int]]:
    """By exposure, in rising order: recited and shown, over all seeds."""
    every = sorted({times for values in seeds for times in values[key]}, key=int)
    pairs = {
        times: [values[key][times] for values in seeds if times in values[key]] for times in every
    }
    return {
        times: (sum(k for k, _ in found), sum(n for _, n in found))
        for times, found in pairs.items()
    }


def _mean(seeds: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(values[key] for values in seeds)) / len(seeds)
