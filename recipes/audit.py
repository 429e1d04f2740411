"""Write the figures of docs/audit.md from the records of audits: ``python -m recipes.audit``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from libortho import records
from libortho.privacy.attacks import ATTACKS
from libortho.records import Record
from libortho.report.audit import groups, states

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("docs/audit.md")
RECORDS = Path("records/audit")
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"


def filled(text: str) -> str:
    """The page with its figures up to date."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    files = sorted((ROOT / RECORDS).glob("*.json"))
    parts = [part for file in files for part in _figures(records.read(file), file)]
    return "\n\n".join([before + BEGIN, *parts, END + after])


def _figures(record: Record, file: Path) -> Iterator[str]:
    found = states(record)
    family = record.figures["family"]
    assert isinstance(family, dict)
    adjusted = family["adjusted"]
    assert isinstance(adjusted, dict)
    lowest = min(adjusted, key=lambda name: float(adjusted[name]))  # type: ignore[arg-type]
    yield (
        f"**{record.verdict}**, {record.n} rows and as many controls, seed {record.seeds[0]}, "
        f"{record.hardware.cpu}, {record.hardware.threads} thread(s), {record.backend}, "
        f"{record.figures['seconds']:.0f} s, commit `{record.commit}`; lowest Holm-adjusted p of "
        f"{len(adjusted)} tests: {adjusted[lowest]:.2g} ({lowest}): "
        f"[record](../{file.relative_to(ROOT).as_posix()})."
    )
    lines = [
        "| attack | figure | " + " | ".join(state.label for state in found) + " | seconds |",
        "|---|---|" + "---|" * (len(found) + 1),
    ]
    for group in groups(found):
        for attack in group.attacks:
            (name,) = (name for name, one in ATTACKS.items() if one.title == attack.title)
            first, seconds = f"`{name}`", _seconds(record, name)
            for key, cells in attack.rows:
                shown = [f"{cell.text} {cell.detail if cell.text != '—' else ''}" for cell in cells]
                row = [first, key, *(text.strip() for text in shown), seconds]
                lines.append("| " + " | ".join(row) + " |")
                first = seconds = ""
    yield "\n".join(lines)


def _seconds(record: Record, name: str) -> str:
    """What one attack took, over all states."""
    total = 0.0
    for method in record.methods.values():
        spent = method.figures["seconds"]
        assert isinstance(spent, dict)
        total += float(spent.get(name, 0.0))  # type: ignore[arg-type]
    return f"{total:.1f}"


if __name__ == "__main__":
    page = ROOT / PAGE
    page.write_text(filled(page.read_text("utf-8")), "utf-8")
