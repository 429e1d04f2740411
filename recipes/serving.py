"""The tables of docs/serving.md: ``python -m recipes.serving measure``, then ``write``.

``measure`` draws sparse supports of the shapes of published models and counts, rank by rank, the
slots that the kernels would read; ``write`` puts the figures of that record, and the last ones of
``make test-vllm``, into the document.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from libortho import ops, records
from libortho.layout import SLICE_ROWS
from libortho.records import Record

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "serving.md"
RECORD = ROOT / "records" / "serving" / "sizing.json"
RUNS = ROOT / "records" / "vllm"
COMMAND = "python -m recipes.serving"

GROUP_SIZE = 128
DENSITY = 0.01
RANKS = (1, 2, 4, 8)
SEED = 0
SLOT_BYTES = SLICE_ROWS * 4
"""A slot of a slice: 16 columns of two bytes, 16 fp16 values."""

SPREADS = {"even": 0.0, "skewed": 1.0}
"""Standard deviation of the log of a row's and of a column's weight: entries fall evenly, or heavy
rows and columns draw many."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder, as its config.json has them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    head: int = 128

    def linears(self) -> dict[str, tuple[tuple[int, ...], int, bool]]:
        """Joined linears of a block: rows of their projections, columns, columns split."""
        query, shared = self.heads * self.head, self.kv_heads * self.head
        return {
            "qkv": ((query, shared, shared), self.hidden, False),
            "o": ((self.hidden,), query, True),
            "gate_up": ((self.intermediate, self.intermediate), self.hidden, False),
            "down": ((self.hidden,), self.intermediate, True),
        }

    def weights(self) -> int:
        """Of the INT4 linears."""
        return self.layers * sum(sum(n) * k for n, k, _ in self.linears().values())

    def base_bytes(self, ranks: int) -> float:
        """Of a rank: INT4 linears with 16-bit scales, bf16 embeddings and head, norms."""
        linears = self.weights() / 2 + self.weights() / GROUP_SIZE * 2
        norms = (2 * self.layers + 1) * self.hidden * 2
        return (linears + 2 * self.vocabulary * self.hidden * 2) / ranks + norms


MODELS = {
    "8B": Shape(4096, 14336, 32, 32, 8, 128256),
    "70B": Shape(8192, 28672, 80, 64, 8, 128256),
    "405B": Shape(16384, 53248, 126, 128, 8, 128256),
}
"""Llama 3.1."""


def slots(rows: Tensor, columns: Tensor, parts: tuple[int, ...], inputs: int, ranks: int,
          split_inputs: bool) -> Tensor:  # fmt: skip
    """Slots [ranks] of the slices that each rank holds of a support given by its entries.

    Args:
        rows: of the joined linear, int64 [nnz].
        columns: int64 [nnz].
        parts: rows of the joined projections; each is split between the ranks on its own.
        inputs: K.
        split_inputs: whether the ranks split the columns instead.
    """
    total = sum(parts)
    if split_inputs:
        rank, local, height = columns // (inputs // ranks), rows, total
    else:
        rank, local = torch.empty_like(rows), torch.empty_like(rows)
        height = total // ranks
        start = 0
        for part in parts:
            inside = (rows >= start) & (rows < start + part)
            own = part // ranks
            offset = rows[inside] - start
            rank[inside] = offset // own
            local[inside] = start // ranks + offset % own
            start += part
    lengths = torch.bincount(rank * height + local, minlength=ranks * height)
    padded = torch.nn.functional.pad(lengths.view(ranks, height), (0, -height % SLICE_ROWS))
    return padded.view(ranks, -1, SLICE_ROWS).amax(-1).sum(-1)


def draw(
    rows: int, columns: int, spread: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Positions of about ``DENSITY · rows · columns`` entries, none twice."""
    count = round(DENSITY * rows * columns)
    picks = []
    for size in (rows, columns):
        weights = torch.exp(spread * torch.randn(size, generator=generator)).double()
        steps = (weights / weights.sum()).cumsum(0)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        picks.append(torch.searchsorted(steps, uniform).clamp(max=size - 1))
    flat = torch.unique(picks[0] * columns + picks[1])
    return flat // columns, flat % columns


def measure() -> dict[str, dict[str, Any]]:
    """Per model and spread: bytes of one stream on each rank, from one block of every model."""
    figures: dict[str, dict[str, Any]] = {}
    for name, shape in MODELS.items():
        generator = torch.Generator().manual_seed(SEED)
        figures[name] = {}
        for spread, sigma in SPREADS.items():
            per_rank = {ranks: torch.zeros(ranks, dtype=torch.int64) for ranks in RANKS}
            entries = 0
            for parts, inputs, split in shape.linears().values():
                rows, columns = draw(sum(parts), inputs, sigma, generator)
                entries += rows.numel()
                for ranks in RANKS:
                    per_rank[ranks] += slots(rows, columns, parts, inputs, ranks, split)
            figures[name][spread] = {
                "entries_of_a_block": entries,
                "slots_of_a_block": {str(r): slots.tolist() for r, slots in per_rank.items()},
            }
    return figures


def table(figures: Any) -> str:
    """The sizing table, from a record's figures."""
    head = [
        "model",
        "TP",
        "base, GB a rank",
        f"stream of {DENSITY:.0%}, GB a rank",
        "its fullest rank over the mean: even / skewed",
        "ten such tenants over the base",
        "all-reduces a block: stock / added",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, shape in MODELS.items():
        for ranks in RANKS:
            sizes = {
                spread: [n * SLOT_BYTES * shape.layers for n in row["slots_of_a_block"][str(ranks)]]
                for spread, row in figures[name].items()
            }
            base = shape.base_bytes(ranks)
            even = max(sizes["even"])
            imbalance = [max(size) / (sum(size) / ranks) for size in sizes.values()]
            cells = [
                name,
                str(ranks),
                f"{base / 1e9:.2f}",
                f"{even / 1e9:.3f}",
                " / ".join(f"{ratio:.3f}" for ratio in imbalance),
                f"+{10 * even / base:.0%}",
                f"{0 if ranks == 1 else 2} / 0",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


WAYS = {
    "mixed_v1": "V1 runner, four streams",
    "preempted_v1": "the same, under preemption",
    "mixed_v2": "V2 runner",
    "mixed_tp2": "TP 2",
    "mixed_compiled": "compiled",
    "http": "HTTP, requests at once",
}
"""Figures of a run that compare with transformers, and what they are called here."""

AGAINST_STOCK = {
    "closed_against_stock": "closed streams",
    "poisoned_closed_against_stock": "closed streams full of NaN",
    "strict_against_stock": "`LIBORTHO_STRICT=1`",
}
AGAINST_BASE = {
    "closed_v2": "V2 runner",
    "closed_tp2": "TP 2",
    "closed_compiled": "compiled",
}
"""Runs with closed streams that compare with an engine of the same kind that attaches none."""

REQUIRED = {
    **WAYS,
    **AGAINST_STOCK,
    **{key: f"closed streams, {name}" for key, name in AGAINST_BASE.items()},
    "closed_row_beside": "an α = 0 row beside open neighbours",
    "prefix_cache": "the prefix cache",
    "throughput": "throughput",
}


def results(runs: list[Record]) -> str:
    """What runs of ``make test-vllm``, whole or in parts, measured; later ones come later."""
    figures: Any = {}
    for run in runs:
        figures |= run.figures
    lines = []
    mixed = [(name, figures[key]) for key, name in WAYS.items() if key in figures]
    for name, row in mixed:
        lines.append(
            f"| mixed batch against transformers: {name} | {row['equal']} of {row['decided']} "
            f"decided greedy tokens equal, max abs Δ log p {row['max_abs_delta_log_prob']:.1e} |"
        )
    if "closed_row_beside" in figures:
        said = ", ".join(sorted(set(figures["closed_row_beside"].values())))
        lines.append(f"| an α = 0 row beside open neighbours, equal batches | {said} |")
    for key, name in AGAINST_STOCK.items():
        if key in figures:
            lines.append(f"| {name} against stock vLLM | {figures[key]} |")
    for key, name in AGAINST_BASE.items():
        if key in figures:
            lines.append(f"| closed streams against the base alone: {name} | {figures[key]} |")
    if "prefix_cache" in figures:
        cache = figures["prefix_cache"]
        lines.append(
            f"| prefix cache, {cache['orders']} random orders of requests "
            f"| {cache['tokens_shared_across_alpha']} tokens shared across α, "
            f"{cache['outputs_changed']} outputs changed, {cache['requests_with_a_hit']} of "
            f"{cache['requests']} requests with a hit |"
        )
    if "throughput" in figures:
        speed = figures["throughput"]
        lines += [
            f"| tokens a second over stock vLLM's, every stream closed | {_ratio(speed)} |",
            f"| the same, `repair` and `private` open | {_ratio(speed['two_streams_open'])} |",
        ]
    lost = [name for key, name in REQUIRED.items() if key not in figures]
    if lost:
        lines.append(f"| not in these records | {', '.join(lost)} |")
    return "\n".join(["| what | figure |", "|---|---|", *lines])


def _ratio(row: Any) -> str:
    low, middle, high = (row[f"ratio_{which}"] for which in ("low", "median", "high"))
    return f"{middle:.3f} (95% interval {low:.3f} to {high:.3f}, {row['pairs']} pairs)"


def filled(text: str, runs: list[Path]) -> str:
    """The document with the tables of the sizing record and of some runs."""
    sizing = records.read(RECORD)
    text = _between(text, "sizing", table(sizing.figures["models"]), [sizing])
    tested = [records.read(run) for run in sorted(runs)]
    return _between(text, "results", results(tested), tested)


def runs_shown(text: str) -> list[Path]:
    """The records of the runs that the document shows."""
    pattern = rf"{RUNS.relative_to(ROOT).as_posix()}/[^)]+\.json"
    return [ROOT / found for found in re.findall(pattern, text)]


def last_runs() -> list[Path]:
    """Of the runs that passed, those that hold the last value of some figure."""
    holders: dict[str, Path] = {}
    for path in sorted(RUNS.glob("*.json")):
        run = records.read(path)
        if run.verdict == "PASS":
            holders |= {key: path for key in run.figures if key in REQUIRED}
    return sorted(set(holders.values()))


def _between(text: str, name: str, block: str, sources: list[Record]) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    lines = []
    for record in sources:
        assert record.source is not None
        path = record.source.relative_to(ROOT).as_posix()
        lines.append(
            f"{record.verdict}, {record.hardware.cpu}, {record.created:%Y-%m-%d}, "
            f"commit `{record.commit}`: [record](../{path})"
        )
    foot = ".  \n".join(lines or ["No run is on record"])
    return f"{before}{begin}\n{block}\n\n{foot}.\n{end}{after}"


def main(verb: str) -> None:
    if verb == "measure":
        start = time.perf_counter()
        models = measure()
        record = records.new(
            "sizing",
            "PASS",
            n=len(MODELS) * len(SPREADS),
            seeds=[SEED],
            backend=ops.backend().name,
            reason="one block of every model drawn and counted",
            config={"density": DENSITY, "group_size": GROUP_SIZE, "spreads": dict(SPREADS)},
            figures={"models": models, "seconds": round(time.perf_counter() - start, 1)},
        )
        records.write(record, RECORD)
    elif verb == "write":
        DOCUMENT.write_text(filled(DOCUMENT.read_text("utf-8"), last_runs()), "utf-8")
    else:
        sys.exit(f"{COMMAND} measure | write, found {verb!r}")


if __name__ == "__main__":
    main(*sys.argv[1:2] or [""])
