"""What a record of ``performance`` says: a table of states, and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libortho.records import Record
from libortho.report.view import size

STATES: Mapping[str, str] = {
    "fp": "BF16 model",
    "int4": "INT4 base, no stream attached",
    "alpha0": "α = 0",
    "alpha1": "α = 1",
    "mixed": "α mixed: every other row open",
}


@dataclass(frozen=True)
class Line:
    """One state: per batch size its time, and what it takes in memory and on disk."""

    label: str
    cells: Sequence[tuple[str, str]]
    memory: str
    disk: str


def batches(record: Record) -> list[int]:
    """The batch sizes of the record."""
    listed = record.config.get("batches")
    return [int(one) for one in listed if isinstance(one, int)] if isinstance(listed, list) else []


def lines(record: Record) -> list[Line]:
    """The rows of the table, one per state that was measured."""
    found = []
    for name, label in STATES.items():
        method = record.methods.get(name)
        if method is None:
            continue
        values: Mapping[str, Any] = method.figures
        cells = []
        for batch in batches(record):
            middle = values.get(f"ms_per_token_batch{batch}")
            if middle is None:
                cells.append(("—", "no such state"))
                continue
            low, high = values[f"ms_per_token_quartiles_batch{batch}"]
            rate = values[f"tokens_per_second_batch{batch}"]
            faster = values[f"times_faster_than_fp_batch{batch}"]
            cells.append(
                (f"{middle:.1f} ms", f"[{low:.1f}, {high:.1f}] {rate:.1f} tokens/s, {faster:.2f}×")
            )
        found.append(Line(label, cells, size(values["bytes_memory"]), size(values["bytes_disk"])))
    return found


def sentence(record: Record) -> str:
    """One plain sentence for the head of the page."""
    if record.verdict == "VOID":
        return f"This run shows nothing, neither way: {record.reason}"
    first = batches(record)[0]
    faster = record.figures.get(f"speedup_alpha0_batch{first}")
    return f"With the streams closed the model decodes {faster:.2f} times as fast as in BF16."


def kernels(record: Record) -> Mapping[str, Any]:
    """Latencies of one layer, by M and by density."""
    found = record.raw.get("kernels") if isinstance(record.raw, dict) else None
    return found if isinstance(found, dict) else {}
