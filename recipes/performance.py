"""Write docs/performance.md from the records and benchmarks: ``python -m recipes.performance``."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from libortho import records
from libortho.bench import Benchmark
from libortho.bench.results import read
from libortho.experiments.performance import NOT_RUN
from libortho.records import Record
from libortho.report import speed
from recipes import performance_cuda
from recipes.performance_replaced import note

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("docs/performance.md")
RESULTS = Path("benchmarks/results")
PREFILL = "prefill"
PENDING = RESULTS / "pending.json"
RECORDED: Mapping[str, tuple[str, str]] = {
    "performance/seed-*": (
        "Whole-model decode on the CPU, 1B shape, batch 1, 8 and 32",
        "libortho experiment performance",
    ),
    "performance/cuda-seed-*": (
        "Whole-model decode on a GPU, 8B shape, batch 1, 8 and 32",
        "libortho experiment performance --device cuda",
    ),
    "killswitch/*": (
        "The kill switch at 200 secrets, seeds 0, 1 and 2",
        "libortho experiment killswitch --text HELDOUT --device cuda",
    ),
    "utility/*": (
        "What INT4, `repair` and `private` cost in perplexity, seeds 0, 1 and 2",
        "libortho experiment utility --text HELDOUT --device cuda",
    ),
    "separation/seed-*": (
        "Every sieve and baseline on one contaminated model, seeds 0, 1 and 2",
        "libortho experiment separation --device cuda",
    ),
    "genius/*": ("The arithmetic that `repair` brings back", "libortho experiment genius"),
    "alpha-sweep/*": (
        "Leakage, perplexity and arithmetic over α",
        "libortho experiment alpha-sweep",
    ),
    "dp/*": ("DP-SGD on the stream, and its audit", "libortho experiment dp"),
}
"""What files under records/ would tell, by pattern, and the command that writes them."""

HEAD = """# Performance

Written by `python -m recipes.performance` from [benchmarks/results](../benchmarks/results) and
[records](../records); no figure is typed. Times are medians of paired runs with their quartiles:
every candidate runs once a round, in turn, on weights rotated so that no cache holds them; on a CPU
a figure of fewer than 8 rows is the mean of a few calls in a row. "base's bytes, only read" is
what torch's fastest reduction of 256 MiB, timed in the same rounds, would take for the base: the
floor of a call that has to fetch every weight.

## How it is computed

`y = x · baseᵀ + Σ α · x · orthoᵀ` is one operator, `libortho::dual_linear`. Rows whose α is 0 do
not touch the stream; a call where all are 0 is the base alone, bit for bit.

- **bf16 and fp16 rows on AVX-512 BF16**: codes and inputs are exact in bf16 (an fp16 row as the
  sum of two), `vdpbf16ps` multiplies pairs, sums run in fp32 and meet the scale in fp32. Up to 24
  rows meet the codes as they are decoded, more a decoded group of a tile. No batch dequantises.
- **other rows and CPUs**: fp32 sums over decoded codes up to 16 rows; above, the base is
  dequantised once and torch multiplies (`dense_route_calls`).
- **memory**: weights of 2 MiB and more lie on large pages where Linux grants them (`madvise`). One
  row is bound by memory: on 4 KiB pages it waits for the TLB, and a plain read does, too.
- **streams**: SELL-16 slices; one open row gathers its inputs, several are packed so that an entry
  serves all of them.

## Measure it

```bash
libortho bench --quick --json         # headline ratios at 4096 × 4096, within a minute
libortho bench                        # shapes × batches × densities × peers
libortho bench --rows 512 --peer "torch bf16" -o benchmarks/results/prefill
libortho experiment performance       # whole-model decode, one record
make -C benchmarks/raw && benchmarks/raw/bench       # CUDA without Python
python benchmarks/cuda_peers.py --commit HEAD --json out.json
```

A peer that is not installed is skipped, with the reason in the result. llama.cpp's kernel is taken
from `llama-cpp-python`, or from a build of ggml on `LD_LIBRARY_PATH`. Marlin, CUTLASS, SpQR and
SqueezeLLM are built outside the repository and given by path:
[benchmarks/peers](../benchmarks/peers/README.md).
"""


def page(root: Path) -> str:
    """The whole document."""
    parts = [HEAD]
    for path in _results(root):
        parts.append(_layers(read(path), path.relative_to(root)))
    for path in sorted((root / "records" / "performance").glob("*.json")):
        parts.append(_decoding(records.read(path), path.relative_to(root)))
    cuda = performance_cuda.section(root)
    parts += [cuda] if cuda else []
    lines = [
        f"- {what}: **unmeasured**; `{command}`." for what, command in unmeasured(root).items()
    ]
    parts.append("## Not measured\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def unmeasured(root: Path) -> dict[str, str]:
    """What has no record yet, with the command that makes one."""
    missing = {
        what: command
        for pattern, (what, command) in RECORDED.items()
        if not any((root / "records").glob(f"{pattern}.json"))
    }
    if not any(
        read(path).device == "cpu" for path in _results(root) if path.parent.name != PREFILL
    ):
        missing["One layer on a CPU, at four shapes and 1 to 64 rows, beside its peers"] = (
            "libortho bench"
        )
    found = [records.read(path) for path in (root / "records" / "killswitch").glob("*.json")]
    if any("arithmetic_alpha1" not in way.figures for one in found for way in one.methods.values()):
        missing["The kill switch at 200 secrets with sums in the replay text, then utility"] = (
            "libortho experiment killswitch --text HELDOUT --device cuda --seed 0 --seed 1 --seed 2"
        )
    return missing | dict(NOT_RUN)


def _results(root: Path) -> list[Path]:
    results = root / RESULTS
    found = (*sorted(results.glob("*.json")), *sorted((results / PREFILL).glob("*.json")))
    return [path for path in found if path.name != PENDING.name]


def pending() -> str:
    """The text of pending.json: what has not been measured, with its command."""
    listed = [{"what": what, "command": command} for what, command in unmeasured(ROOT).items()]
    return json.dumps({"unmeasured": listed}, indent=2) + "\n"


def _layers(result: Benchmark, path: Path) -> str:
    hardware = result.hardware
    lines = [
        f"## One layer: {hardware.gpu if result.device == 'cuda' else hardware.cpu}, "
        f"{hardware.threads} threads",
        "",
        f"{result.backend}, {result.dtype}, {result.rounds} rounds; commit `{result.commit}`, "
        f"`{result.command}`, "
        f"[result](../{path.as_posix()}).",
        *_replaced(result.device, result.commit, [one.rows for one in result.measurements], "M ="),
        "",
        "| N×K | M | candidate | µs | quartiles | time over base only |",
        "|---|---|---|---|---|---|",
    ]
    for one in result.measurements:
        low, middle, high = one.microseconds
        lines.append(
            f"| {one.shape[0]}×{one.shape[1]} | {one.rows} | {one.name} | {middle:.0f} | "
            f"{low:.0f} … {high:.0f} | {one.over_base:.3f} |"
        )
    reasons: dict[str, list[str]] = {}
    for what, why in result.skipped.items():
        name, _, where = what.partition(", ")
        reasons.setdefault(f"{name}: {why}", []).append(where)
    lines += ["", *(f"- skipped {why} ({len(where)} cases)" for why, where in reasons.items()), ""]
    return "\n".join(lines)


def _decoding(record: Record, path: Path) -> str:
    config: Mapping[str, object] = record.config
    batches = speed.batches(record)
    fused = " (q/k/v and gate/up as one each, in floating point too)" if config.get("fused") else ""
    machine = record.hardware.gpu if config["device"] == "cuda" else record.hardware.cpu
    lines = [
        f"## Whole model: {record.verdict}",
        "",
        f"{config['parameters']:,} parameters, {config['layers']} layers of "
        f"{config['hidden_size']}, "
        f"{config['converted_linears']} converted linears{fused}, random weights, stream density "
        f"{config['density']}; static KV cache, one token a sequence and step, {record.n} steps. "
        f"{machine}, {record.hardware.threads} threads, {record.backend}, commit "
        f"`{record.commit}`: [record](../{path.as_posix()}). {record.reason}",
        *_replaced(config["device"], record.commit, batches, "batch"),
        "",
        "| state | " + " | ".join(f"batch {one}" for one in batches) + " | memory | disk |",
        "|---" * (len(batches) + 3) + "|",
    ]
    for line in speed.lines(record):
        cells = " | ".join(f"{value} {detail}" for value, detail in line.cells)
        lines.append(f"| {line.label} | {cells} | {line.memory} | {line.disk} |")
    calls = record.figures
    lines += [
        "",
        f"Native calls {calls['native_op_calls']}, expected {calls['expected_op_calls']}, "
        f"dense-route calls {calls['dense_route_calls']}. Energy: {calls['energy']}.",
        "",
    ]
    return "\n".join(lines)


def _replaced(device: object, commit: str, rows: Collection[int], called: str) -> list[str]:
    return note(commit, rows, called) if device == "cuda" else []


if __name__ == "__main__":
    (ROOT / PAGE).write_text(page(ROOT), "utf-8")
    (ROOT / PENDING).parent.mkdir(parents=True, exist_ok=True)
    (ROOT / PENDING).write_text(pending(), "utf-8")
