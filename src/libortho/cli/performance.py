"""``experiment performance``: one record of this machine, and a table of it."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.table import Table

from libortho import records
from libortho.cli.console import emit, shown, stderr
from libortho.experiments.performance import NAME, performance
from libortho.records import Record


def run_performance(where: Path, seed: int, json: bool, device: torch.device) -> Record:
    """Decode, write ``where/performance/seed-N.json`` and show what was found.

    On a GPU the file is ``cuda-seed-N.json``: a machine has a record of each.
    """
    with shown() as progress:
        record = performance(seed=seed, device=device, progress=progress)
    name = f"seed-{seed}.json" if device.type == "cpu" else f"{device.type}-seed-{seed}.json"
    path = where / NAME / name
    records.write(record, path)
    stderr.print(_table(record))
    text = f"{record.verdict}: {record.reason}\nrecord {path}"
    emit(record.summary(), json, text)
    return record


def _table(record: Record) -> Table:
    table = Table(title=f"{record.experiment}: {record.verdict}")
    batches = record.config["batches"]
    assert isinstance(batches, list)
    table.add_column("state")
    for batch in batches:
        table.add_column(f"ms/token, batch {batch}", justify="right")
        table.add_column("× faster than FP", justify="right")
    for name, method in record.methods.items():
        cells = []
        for batch in batches:
            for key in (f"ms_per_token_batch{batch}", f"times_faster_than_fp_batch{batch}"):
                value = method.figures.get(key)
                cells.append(f"{value:.2f}" if isinstance(value, float) else "–")
        table.add_row(name, *cells)
    return table
