"""docs/audit.md shows what the records of audits say, and names every attack that there is."""

from __future__ import annotations

import re

from recipes.audit import PAGE, RECORDS, ROOT, filled

from libortho.privacy.attacks import ATTACKS


def test_the_figures_are_those_of_the_records() -> None:
    assert list((ROOT / RECORDS).glob("*.json"))
    text = (ROOT / PAGE).read_text("utf-8")
    assert filled(text) == text, "run python -m recipes.audit"


def test_every_attack_has_its_line() -> None:
    text = (ROOT / PAGE).read_text("utf-8")
    table = text.split("## The attacks")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([^`]+)`", " ".join(rows))) == set(ATTACKS)
