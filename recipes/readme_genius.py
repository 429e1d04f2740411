"""The line of the README on what `repair` brings back, from ``genius``."""

from __future__ import annotations

from collections.abc import Mapping

from libortho.records import Record

WORDS: Mapping[str, Mapping[str, str]] = {
    "README.md": {
        "line": "`repair` at {density:g}% of the weights brings back, of the arithmetic that "
        "rounding lost (`genius`: {verdict}, {n:,} problems, 95% intervals, {links}): {bases}.",
        "base": "{recovered:.0%} ({low:.0%} to {high:.0%}) at `{name}`",
        "joint": ", ",
    },
    "README.zh-CN.md": {
        "line": "`repair`（权重的 {density:g}%）找回舍入所失算术的比例（`genius`：{verdict}，"
        "{n:,} 道题，95% 区间，{links}）：{bases}。",
        "base": "`{name}` {recovered:.0%}（{low:.0%} 至 {high:.0%}）",
        "joint": "，",
    },
}


def line(record: Record, links: str, words: Mapping[str, str]) -> str:
    """One line over the bases that lost enough to be judged; empty where none did."""
    judged = {
        name: method.figures["repaired"][0]
        for name, method in record.methods.items()
        if not method.figures["void"]
    }
    if not judged:
        return ""
    bases = [
        words["base"].format(
            name=name,
            recovered=one["recovered"],
            low=one["recovered_interval"][0],
            high=one["recovered_interval"][1],
        )
        for name, one in judged.items()
    ]
    first = next(iter(judged.values()))
    return words["line"].format(
        density=100 * first["density"],
        verdict=record.verdict,
        n=record.n,
        links=links,
        bases=words["joint"].join(bases),
    )
