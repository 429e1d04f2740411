"""The CUDA part of docs/performance.md, from benchmarks/results/cuda."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path("benchmarks/results/cuda")

HEAD = """## CUDA: how it is computed

One launch for up to 64 rows of x in fp16 or bf16, on the layouts of the CPU. Each warp streams 32
output rows through a ring of its own in shared memory; codes become tensor-core operands unscaled,
so products are exact, and a group's fp32 sum meets its scale. alpha is read on the device: a
captured graph replays with another. Weights are fetched before the kernel ahead ends (programmatic
dependent launch).

- **up to 8 rows**: the warps of a thread block share a tile and split its inputs; x lies in shared
  memory whole. Up to 4 rows a lane gathers x for its stream entries; above, a slot of a SELL-16
  slice, one entry for each of 16 rows, is a diagonal operand.
- **9 to 64 rows**, and 5 to 8 where x is too large for that or the layer too small: a warp has a
  tile of its own, and up to eight of them share x, which comes in chunks of 128 inputs and is
  transposed in shared memory. Where there are too few tiles, thread blocks of a cluster split the
  inputs and sum through one another's shared memory, in order. Streams are walked along the inputs
  with the base: each output row keeps the slot it has come to.

Above 384 rows the base is dequantised once, rounded to the dtype of x, and torch multiplies;
x in fp32, values in training and gradients run on the reference.

Calls stand back to back in a CUDA graph over weights that rotate through 320 MB.
"""

REPLACED = {
    "1092ea022afefb2f4749d568c38f4c9a6ae91683": (
        "The kernel for 9 to 64 rows, which some shapes use from 5 rows on, has been rewritten "
        "since: M ≥ 16, and M = 8 at 1024×4096 and 4096×14336, show the one before it. The present "
        "one, and the present order in which streams are fetched up to 8 rows, have run in "
        "emulation alone: their speed is unmeasured."
    ),
}
"""By the commit of a result: what it no longer says."""


def section(root: Path) -> str:
    """Empty where nothing was measured on CUDA."""
    parts = [_peers(json.loads(path.read_text("utf-8")), path.relative_to(root))
             for path in sorted((root / FOLDER).glob("*-peers.json"))]  # fmt: skip
    parts += [_raw(json.loads(path.read_text("utf-8")), path.relative_to(root))
              for path in sorted((root / FOLDER).glob("*-raw.json"))]  # fmt: skip
    return "\n".join([HEAD, *parts]) if parts else ""


def _peers(result: dict[str, Any], path: Path) -> str:
    lines = [
        f"## CUDA beside its peers: {result['device']}",
        "",
        f"torch {result['torch']}, clocks {result['clocks']}, commit `{result['commit']}`, "
        f"`{result['command']}`, medians of {result['replays']} replays, "
        f"[result](../{path.as_posix()}).",
        *_replaced(result),
        "",
        "| N×K | M | bf16 µs | tinygemm µs | base µs | better peer / base | α=0 / base | "
        "α=1 / α=0 at 1% | at 5% | tinygemm + cuSPARSE / α=1 at 1% |",
        "|---" * 10 + "|",
    ]
    cases: dict[tuple[int, int, int], dict[tuple[str, float], float]] = {}
    for row in result["linears"]:
        key = (row["rows"], row["columns"], row["batch"])
        cases.setdefault(key, {})[row["kernel"], row["density"]] = row["us"]
    for (rows, columns, batch), us in cases.items():
        bf16, tiny, base = us["bf16", 0], us["tinygemm", 0], us["libortho base", 0]
        closed = us["libortho alpha 0", 0.01]
        one, five = us["libortho alpha 1", 0.01], us["libortho alpha 1", 0.05]
        naive = us.get(("tinygemm + cuSPARSE", 0.01))
        lines.append(
            f"| {rows}×{columns} | {batch} | {bf16:.2f} | {tiny:.2f} | {base:.2f} | "
            f"{min(bf16, tiny) / base:.2f} | {closed / base:.3f} | {one / closed:.2f} | "
            f"{five / us['libortho alpha 0', 0.05]:.2f} | "
            f"{'–' if naive is None else format(naive / one, '.2f')} |"
        )
    lines += [
        "",
        "The 128 linears of a Llama-3-8B shape in one graph, ms a token:",
        "",
        "| M | kernel | ms | bf16 / this |",
        "|---|---|---|---|",
    ]
    bf16_ms = {row["batch"]: row["ms"] for row in result["chains"] if row["chain"] == "bf16"}
    for row in result["chains"]:
        lines.append(
            f"| {row['batch']} | {row['chain']} | {row['ms']:.3f} | "
            f"{bf16_ms[row['batch']] / row['ms']:.2f} |"
        )
    return "\n".join([*lines, ""])


def _raw(result: dict[str, Any], path: Path) -> str:
    lines = [
        f"## CUDA without Python: {result['device']}",
        "",
        f"Copy {result['copy_gb_s']:.0f} GB/s, nvcc {result['nvcc']}, driver {result['driver']}, "
        f"clocks {result['clocks']}, commit `{result['commit']}`, `{result['command']}`, "
        f"[result](../{path.as_posix()}).",
        *_replaced(result),
        "",
        "The base alone:",
        "",
        "| N×K | M | µs | GB/s | of copy |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['rows']}×{one['columns']} | {one['batch']} | {one['us']:.2f} | "
        f"{one['gb_s']:.0f} | {one['of_copy']:.2f} |"
        for one in result["cases"]
        if one["alpha"] == "none"
    ]
    return "\n".join([*lines, ""])


def _replaced(result: dict[str, Any]) -> list[str]:
    note = REPLACED.get(result["commit"])
    return [] if note is None else ["", note]
