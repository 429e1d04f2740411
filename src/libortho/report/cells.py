"""What the tables of points and rows are built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libortho.records import Record
from libortho.report.view import Cell

NONE = Cell("—", "", kind="absent")


@dataclass(frozen=True)
class Table:
    """One table: headed columns, each with the direction that is good, and rows of cells."""

    title: str
    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def points(record: Record, method: str, key: str) -> list[Mapping[str, Any]]:
    """A list of points that a method's figures hold, empty where they do not."""
    found = record.methods[method].figures.get(key) if method in record.methods else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def number(value: Any, shown: str) -> Cell:
    """A number in a format, or a dash."""
    return Cell(shown.format(value)) if isinstance(value, int | float) else NONE
