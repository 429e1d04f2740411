"""Write the figures of both READMEs from the records: ``python -m recipes.readme``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libortho import records
from libortho.records import Record

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
PENDING = "libortho experiment killswitch --text HELDOUT --device cuda"
SEEDS = (0, 1, 2)
TABLED = ("demo", "killswitch")

WORDS: Mapping[str, Mapping[str, str]] = {
    "README.md": {
        "head": "| {name}: {verdict} | recited at α=1 | recited at α=0 | secret NLL at α=0, "
        "members / controls | perplexity α=0 / α=1 over its FP model | α=0 identical to the base |",
        "yes": "yes",
        "no": "NO",
        "own": "its own base, which has seen the secrets",
        "foot": "{n} secrets, seed {seed}, {cpu}, {backend}, {seconds:.0f} s, commit `{commit}`: "
        "[record]({path}).",
        "pending": "`killswitch` with 200 secrets, seed {seed}: unmeasured; `{command}`.",
    },
    "README.zh-CN.md": {
        "head": "| {name}：{verdict} | α=1 时背出 | α=0 时背出 | α=0 时秘密的 NLL，成员 / 对照 | "
        "困惑度 α=0 / α=1 与其浮点模型之比 | α=0 与 base 逐位相同 |",
        "yes": "是",
        "no": "否",
        "own": "它自己的 base，已见过秘密",
        "foot": "{n} 个秘密，种子 {seed}，{cpu}，{backend}，{seconds:.0f} 秒，提交 `{commit}`："
        "[记录]({path})。",
        "pending": "200 个秘密的 `killswitch`，种子 {seed}：未测量；`{command}`。",
    },
}


def figures(words: Mapping[str, str]) -> str:
    """The block between the markers, in one language."""
    parts = []
    for path in sorted((ROOT / "records").rglob("*.json")):
        record = records.read(path)
        if record.experiment in TABLED:
            parts.append(_table(record, path.relative_to(ROOT), words))
    for seed in SEEDS:
        if not (ROOT / "records" / "killswitch" / f"seed-{seed}.json").is_file():
            parts.append(words["pending"].format(seed=seed, command=f"{PENDING} --seed {seed}"))
    return "\n\n".join(parts)


def filled(text: str, words: Mapping[str, str]) -> str:
    """A README with its figures up to date."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{figures(words)}\n{END}{after}"


def _table(record: Record, path: Path, words: Mapping[str, str]) -> str:
    head = words["head"].format(name=record.experiment, verdict=record.verdict)
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for way, method in record.methods.items():
        lines.append(_row(way, method.figures, words))
    foot = words["foot"].format(
        n=record.n,
        seed=record.seeds[0],
        cpu=record.hardware.cpu,
        backend=record.backend,
        seconds=record.figures["seconds"],
        commit=record.commit,
        path=path.as_posix(),
    )
    return "\n".join([*lines, "", foot])


def _row(way: str, values: Mapping[str, Any], words: Mapping[str, str]) -> str:
    n = values["members"]
    ratio = [values[f"ppl_{state}"] / values["ppl_fp"] for state in ("alpha0", "alpha1")]
    same = words["yes" if values["identical_alpha0"] else "no"]
    cells = [
        f"`{way}`",
        f"{values['extracted_alpha1']}/{n}",
        f"{values['extracted_alpha0']}/{n}",
        f"{values['nll_alpha0']:.1f} / {values['nll_alpha0_controls']:.1f}",
        f"{ratio[0]:.4f} / {ratio[1]:.4f}",
        same if values["guarantee"] == "exact" else words["own"],
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    for name, words in WORDS.items():
        file = ROOT / name
        file.write_text(filled(file.read_text("utf-8"), words), "utf-8")
