"""Write the figures of both READMEs from the records: ``python -m recipes.readme``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from libortho import records
from libortho.records import Record
from recipes import readme_genius, readme_residual, readme_speed, readme_sums

ROOT = Path(__file__).resolve().parents[1]
PENDING = "libortho experiment killswitch --text HELDOUT --device cuda"
SEEDS = (0, 1, 2)
TABLED = ("demo", "killswitch")

WORDS: Mapping[str, Mapping[str, str]] = {
    "README.md": {
        "head": "| {name}: {verdict} | recited at α=1 | recited at α=0 | secret NLL at α=0, "
        "members / controls | perplexity α=0 / α=1 over its FP model | arithmetic α=0 / α=1 | "
        "α=0 identical to the base |",
        "yes": "yes",
        "no": "NO",
        "own": "its own base, which has seen the secrets",
        "unmeasured": "unmeasured",
        "foot": "{n} secrets each time, trained on {device}, evaluated by {backend}, commit "
        "`{commit}`; records: {links}.",
        "before": "These were judged before arithmetic was, with replay text that shows no sums, "
        "and with a `repair` made without them.",
        "seed": "seed {seed}",
        "pending": "`killswitch` with 200 secrets, seed {seed}: unmeasured; `{command}`.",
    },
    "README.zh-CN.md": {
        "head": "| {name}：{verdict} | α=1 时背出 | α=0 时背出 | α=0 时秘密的 NLL，成员 / 对照 | "
        "困惑度 α=0 / α=1 与其浮点模型之比 | 算术 α=0 / α=1 | α=0 与 base 逐位相同 |",
        "yes": "是",
        "no": "否",
        "own": "它自己的 base，已见过秘密",
        "unmeasured": "未测量",
        "foot": "每次 {n} 个秘密，训练于 {device}，评测后端 {backend}，提交 `{commit}`；"
        "记录：{links}。",
        "before": "这些判定早于对算术的判定：当时回放文本中没有算式，`repair` 也不曾见过算式。",
        "seed": "种子 {seed}",
        "pending": "200 个秘密的 `killswitch`，种子 {seed}：未测量；`{command}`。",
    },
}


def figures(name: str) -> str:
    """The block between the markers of a README."""
    words = WORDS[name]
    parts = [
        _table(table, found, words)
        for table, found in ((table, _found(table, "seed-*")) for table in TABLED)
        if found
    ]
    found = _found("separation", "seed-*")
    links = _links(found, words)
    told = readme_residual.line([*found.values()], links, readme_residual.WORDS[name])
    genius = _found("genius", "seed-0")
    repaired = [
        readme_genius.line(record, _links({path: record}, words), readme_genius.WORDS[name])
        for path, record in genius.items()
    ]
    speed = {path.relative_to(ROOT): record for path, record in _found("performance", "*").items()}
    decoded = readme_speed.line(speed, readme_speed.WORDS[name])
    parts += [one for one in (told, *repaired, decoded) if one]
    for seed in SEEDS:
        if not (ROOT / "records" / "killswitch" / f"seed-{seed}.json").is_file():
            parts.append(words["pending"].format(seed=seed, command=f"{PENDING} --seed {seed}"))
    return "\n\n".join(parts)


def filled(text: str, name: str) -> str:
    """A README with its figures up to date."""
    sums = readme_sums.clause(records.read(ROOT / readme_sums.SOURCE), readme_sums.WORDS[name])
    return _between(_between(text, "figures", f"\n{figures(name)}\n"), "sums", sums)


def _between(text: str, name: str, told: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{told}{end}{after}"


def _found(experiment: str, pattern: str) -> dict[Path, Record]:
    paths = sorted((ROOT / "records" / experiment).glob(f"{pattern}.json"))
    return {path: records.read(path) for path in paths}


def _table(name: str, found: Mapping[Path, Record], words: Mapping[str, str]) -> str:
    """One experiment, its seeds added up; where they differ, a figure is given as a range."""
    first, *_ = found.values()
    verdict = ", ".join(sorted({record.verdict for record in found.values()}))
    head = words["head"].format(name=name, verdict=verdict)
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for way in first.methods:
        lines.append(_row(way, [record.methods[way].figures for record in found.values()], words))
    on_gpu = first.config.get("device", "cpu") != "cpu"
    foot = words["foot"].format(
        n=first.n,
        device=first.hardware.gpu if on_gpu else first.hardware.cpu,
        backend=first.backend,
        commit=first.commit,
        links=_links(found, words),
    )
    asked = [
        "arithmetic_alpha1" in way.figures
        for record in found.values()
        for way in record.methods.values()
    ]
    if not all(asked):
        foot = f"{foot} {words['before']}"
    return "\n".join([*lines, "", foot])


def _links(found: Mapping[Path, Record], words: Mapping[str, str]) -> str:
    return ", ".join(
        f"[{words['seed'].format(seed=record.seeds[0])}]({path.relative_to(ROOT).as_posix()})"
        for path, record in found.items()
    )


def _row(way: str, seeds: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> str:
    def total(key: str) -> str:
        return (
            f"{sum(values[key] for values in seeds)}/{sum(values['members'] for values in seeds)}"
        )

    def ratio(key: str) -> str:
        return _span([values[key] / values["ppl_fp"] for values in seeds], ".4f")

    def nll(key: str) -> str:
        return _span([values[key] for values in seeds], ".1f")

    def arithmetic(key: str) -> str:
        return _span([100 * values[key] for values in seeds], ".1f") + "%"

    asked = all("arithmetic_alpha1" in values for values in seeds)
    same = words["yes" if all(values["identical_alpha0"] for values in seeds) else "no"]
    cells = [
        f"`{way}`",
        total("extracted_alpha1"),
        total("extracted_alpha0"),
        f"{nll('nll_alpha0')} / {nll('nll_alpha0_controls')}",
        f"{ratio('ppl_alpha0')} / {ratio('ppl_alpha1')}",
        f"{arithmetic('arithmetic_alpha0')} / {arithmetic('arithmetic_alpha1')}"
        if asked
        else words["unmeasured"],
        same if seeds[0]["guarantee"] == "exact" else words["own"],
    ]
    return "| " + " | ".join(cells) + " |"


def _span(values: Sequence[float], digits: str) -> str:
    low, high = format(min(values), digits), format(max(values), digits)
    return low if low == high else f"{low}–{high}"


if __name__ == "__main__":
    for name in WORDS:
        file = ROOT / name
        file.write_text(filled(file.read_text("utf-8"), name), "utf-8")
