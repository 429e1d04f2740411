"""The CUDA part of docs/performance.md, from benchmarks/results/cuda."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from libortho.errors import FormatError
from recipes.performance_replaced import note

FOLDER = Path("benchmarks/results/cuda")

Cases = dict[tuple[int, int, int], dict[tuple[str, float], float]]

HEAD = """## CUDA: how it is computed

One launch for up to 64 rows of x in fp16 or bf16, on the layouts of the CPU. Each warp streams 32
output rows through a ring of its own in shared memory; codes become tensor-core operands unscaled,
so products are exact, and a group's fp32 sum meets its scale. alpha is read on the device: a
captured graph replays with another. Weights are fetched before the kernel ahead ends (programmatic
dependent launch).

- **up to 16 rows**: x lies in shared memory, up to 4 rows as they are, above transposed. A warp has
  a tile and a part of its inputs, and runs on without meeting others: blocks of the base and, where
  alpha opens any, pieces of the streams come through one ring, fetched ahead. Where it pays, thread
  blocks of a cluster split the inputs. The parts of a tile are summed through shared memory, in
  order. Entries of streams are gathered and multiplied in fp32 on the plain cores.
- **17 to 64 rows**: a warp has a tile, and on Hopper four warps multiply together (wgmma): codes in
  registers, x transposed in shared memory, where up to eight warps share it, a chunk of 128 inputs
  after another. Where there are too few tiles, thread blocks of a cluster split the inputs.
  Streams are walked along the inputs with the base: each output row keeps the slot it has come to.

Above 384 rows the base is dequantised once, rounded to the dtype of x, and torch multiplies;
x in fp32, values in training and gradients run on the reference.

Calls stand back to back in a CUDA graph over weights that rotate through 320 MB.
"""

DENSE_PEERS = ("bf16", "tinygemm", "Marlin", "CUTLASS")
SPARSE_PEERS = ("SpQR", "SqueezeLLM")
NAIVE = ("Marlin + cuSPARSE", "tinygemm + cuSPARSE")
"""INT4 kernels with cuSPARSE after them; the first that was measured is shown."""


def section(root: Path) -> str:
    """Empty where nothing was measured on CUDA."""
    parts = [
        shown(json.loads(path.read_text("utf-8")), path.relative_to(root))
        for kind, shown in _SHOWN.items()
        for path in sorted((root / FOLDER).glob(f"*-{kind}.json"))
    ]
    return "\n".join([HEAD, *parts]) if parts else ""


def _peers(result: dict[str, Any], path: Path) -> str:
    lines = [
        f"## CUDA beside its peers: {result['device']}",
        "",
        f"torch {result['torch']}, clocks {result['clocks']}, commit `{result['commit']}`, "
        f"`{result['command']}`, medians of {result['replays']} replays, "
        f"[result](../{path.as_posix()}).",
        *note(result["commit"], [row["batch"] for row in result["linears"]], "M ="),
        *_linears(result["linears"], path),
        *_sparse_peers(result["linears"]),
    ]
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
    notes = [
        f"- {name} was checked first: at most {one['error']:.1e} of the largest result off float32."
        for name, one in result.get("checked", {}).items()
    ]
    notes += [
        f"- {name} was not measured: {why}" for name, why in result.get("skipped", {}).items()
    ]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def _cases(rows: list[dict[str, Any]]) -> Cases:
    """µs by kernel and density, by output features, inputs and rows."""
    cases: Cases = {}
    for row in rows:
        key = (row["rows"], row["columns"], row["batch"])
        cases.setdefault(key, {})[row["kernel"], row["density"]] = row["us"]
    return cases


def _linears(rows: list[dict[str, Any]], path: Path) -> list[str]:
    measured = {row["kernel"] for row in rows}
    peers = [name for name in DENSE_PEERS if name in measured]
    naive = next((name for name in NAIVE if name in measured), None)
    if naive is None:
        raise FormatError(
            f"{path}: no INT4 kernel with cuSPARSE after it among {', '.join(sorted(measured))}; "
            f"expected one of {', '.join(NAIVE)}. benchmarks/cuda_peers.py measures the last"
        )
    lines = [
        "",
        f"| N×K | M | {' µs | '.join(peers)} µs | base µs | best peer / base | α=0 / base | "
        f"α=1 / α=0 at 1% | at 5% | {naive} / α=1 at 1% |",
        "|---" * (8 + len(peers)) + "|",
    ]
    for (outputs, columns, batch), us in _cases(rows).items():
        base, closed = us["libortho base", 0], us["libortho alpha 0", 0.01]
        one, five = us["libortho alpha 1", 0.01], us["libortho alpha 1", 0.05]
        both = us.get((naive, 0.01))
        lines.append(
            f"| {outputs}×{columns} | {batch} | "
            f"{' | '.join(format(us[peer, 0], '.2f') for peer in peers)} | {base:.2f} | "
            f"{min(us[peer, 0] for peer in peers) / base:.2f} | {closed / base:.3f} | "
            f"{one / closed:.2f} | {five / us['libortho alpha 0', 0.05]:.2f} | "
            f"{'–' if both is None else format(both / one, '.2f')} |"
        )
    return lines


def _sparse_peers(rows: list[dict[str, Any]]) -> list[str]:
    """Kernels of others that join a sparse matrix to a dense one; empty where none was measured."""
    measured = {row["kernel"] for row in rows}
    peers = [name for name in SPARSE_PEERS if name in measured]
    if not peers:
        return []
    lines = [
        "",
        "Kernels of others that take a sparse matrix too, µs: SpQR with 3 bits, SqueezeLLM with 16 "
        "values a row.",
        "",
        f"| N×K | M | density | α=1 | {' | '.join(peers)} |",
        "|---" * (4 + len(peers)) + "|",
    ]
    for (outputs, columns, batch), us in _cases(rows).items():
        for density in (0.01, 0.05):
            found = [us.get((peer, density)) for peer in peers]
            if any(found):
                told = " | ".join("–" if one is None else format(one, ".2f") for one in found)
                own = us["libortho alpha 1", density]
                lines.append(
                    f"| {outputs}×{columns} | {batch} | {density:.0%} | {own:.2f} | {told} |"
                )
    return lines


def _raw(result: dict[str, Any], path: Path) -> str:
    lines = [
        f"## CUDA without Python: {result['device']}",
        "",
        f"Copy {result['copy_gb_s']:.0f} GB/s, nvcc {result['nvcc']}, driver {result['driver']}, "
        f"clocks {result['clocks']}, commit `{result['commit']}`, `{result['command']}`, "
        f"[result](../{path.as_posix()}).",
        *note(result["commit"], [one["batch"] for one in result["cases"]], "M ="),
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


def _profile(result: dict[str, Any], path: Path) -> str:
    """What the kernel for many rows does while streams are closed and open."""
    lines = [
        f"## Profile of the CUDA kernel for 17 to 64 rows: {result['device']}",
        "",
        f"`{result['command']}`, {result['made']}; commit `{result['commit']}`, "
        f"[result](../{path.as_posix()}).",
        "",
        "| N×K | M | density | α | µs | instructions | warps a scheduler | cycles an instruction "
        "of a warp | memory busy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['rows']}×{one['columns']} | {one['batch']} | {one['density']:.0%} | "
        f"{one['alpha']} | {one['us']:.1f} | {one['instructions'] / 1e6:.2f} M | "
        f"{one['warps_per_scheduler']:.1f} | {one['cycles_per_instruction_of_a_warp']:.1f} | "
        f"{one['dram_percent']:.0f}% |"
        for one in result["kernels"]
    ]
    lines += ["", "What warps wait for, by samples (names of Nsight Compute):", ""]
    for one in result["samples"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in one["shares"].items())
        lines.append(f"- M = {one['batch']}, {one['density']:.0%}, α = {one['alpha']}: {shares}")
    return "\n".join([*lines, ""])


def _sanitizer(result: dict[str, Any], path: Path) -> str:
    lines = [
        f"## CUDA under compute-sanitizer: {result['device']}",
        "",
        f"Checked: {result['checked']}. Commit `{result['commit']}`, "
        f"[result](../{path.as_posix()}).",
        "",
    ]
    lines += [
        f"- `{run['command']}`: {run['found']} {run['of']}; {run['layers']} layers, "
        f"{run['failures']} failures"
        for run in result["runs"]
    ]
    return "\n".join([*lines, ""])


def _plans(result: dict[str, Any], path: Path) -> str:
    """The fastest of the plans that were timed, by shape."""
    fastest: dict[tuple[int, int, int], dict[str, Any]] = {}
    for one in result["plans"]:
        key = (one["rows"], one["columns"], one["batch"])
        fastest[key] = min(one, fastest.get(key, one), key=lambda plan: plan["us"])
    lines = [
        f"## Plans of the CUDA kernel for 17 to 64 rows: {result['device']}",
        "",
        f"Timed {result['made']}, on a build just before commit `{result['before']}`, which "
        "changed how a thread block ends and the order of its products. The base by itself, each "
        f"result checked against float64, medians of {result['replays']} replays of a graph over "
        f"rotated weights, [result](../{path.as_posix()}). The fastest plan:",
        "",
        "| N×K | M | µs | warps of tiles × inputs | thread blocks of a cluster | stages |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {rows}×{columns} | {batch} | {one['us']:.2f} | {one['row_warps']} × {one['k_warps']} | "
        f"{one['cluster']} | {one['stages']} |"
        for (rows, columns, batch), one in fastest.items()
    ]
    return "\n".join([*lines, ""])


_SHOWN: dict[str, Callable[[dict[str, Any], Path], str]] = {
    "peers": _peers,
    "raw": _raw,
    "profile": _profile,
    "sanitizer": _sanitizer,
    "plans": _plans,
}
"""What writes the section of a result, by the end of its file's name; in the page's order."""
