"""The CUDA part of docs/performance.md: the best peer decides, and a missing one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipes.performance_cuda import FOLDER, section
from recipes.performance_replaced import note

from libortho.errors import FormatError

OWN = {
    ("libortho base", 0): 5.0,
    ("libortho alpha 0", 0.01): 5.0,
    ("libortho alpha 1", 0.01): 6.0,
    ("libortho alpha 0", 0.05): 5.0,
    ("libortho alpha 1", 0.05): 8.0,
}
TORCH = {("bf16", 0): 20.0, ("tinygemm", 0): 10.0, ("tinygemm + cuSPARSE", 0.01): 30.0}


def shown(root: Path, us: dict[tuple[str, float], float], **more: Any) -> str:
    where = {"rows": 64, "columns": 256, "batch": 1}
    result = {
        "commit": "c0ffee",
        "command": "python benchmarks/cuda_peers.py",
        "device": "a card",
        "clocks": "1 MHz",
        "torch": "2",
        "replays": 3,
        "linears": [{**where, "kernel": k, "density": d, "us": t} for (k, d), t in us.items()],
        "chains": [{"chain": "bf16", "batch": 1, "linears": 8, "ms": 4.0}],
        **more,
    }
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    (root / FOLDER / "card-peers.json").write_text(json.dumps(result))
    return section(root)


def test_without_libraries_torch_has_the_best_peer(tmp_path: Path) -> None:
    text = shown(tmp_path, OWN | TORCH, skipped={"Marlin": "no library was given"})
    row = "| 64×256 | 1 | 20.00 | 10.00 | 5.00 | 2.00 | 1.000 | 1.20 | 1.60 | 5.00 |"
    assert row in text.splitlines()
    assert "- Marlin was not measured: no library was given" in text.splitlines()
    assert "SpQR" not in text


@pytest.mark.parametrize(("marlin", "best"), [(6.0, "1.20"), (11.0, "2.00")])
def test_the_fastest_peer_is_compared_and_marlin_is_the_naive_base(
    tmp_path: Path, marlin: float, best: str
) -> None:
    more = {("Marlin", 0): marlin, ("Marlin + cuSPARSE", 0.01): 24.0, ("SpQR", 0.01): 12.0}
    checked = {"Marlin": {"error": 0.00031, "most_rows": 64, "wrong": {}}}
    lines = shown(tmp_path, OWN | TORCH | more, checked=checked).splitlines()
    row = f"20.00 | 10.00 | {marlin:.2f} | 5.00 | {best} | 1.000 | 1.20 | 1.60 | 4.00 |"
    assert f"| 64×256 | 1 | {row}" in lines
    assert "| 64×256 | 1 | 1% | 6.00 | 12.00 |" in lines
    assert any("Marlin + cuSPARSE / α=1 at 1%" in line for line in lines)
    assert any(line.startswith("- Marlin was checked first: at most 3.1e-04") for line in lines)


def test_without_a_naive_kernel_the_result_is_refused(tmp_path: Path) -> None:
    dense = {key: us for key, us in TORCH.items() if "cuSPARSE" not in key[0]}
    with pytest.raises(FormatError, match=r"card-peers\.json: no INT4 kernel with cuSPARSE after"):
        shown(tmp_path, OWN | dense)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([1, 8, 32], "batch 32 shows the one before"),
        ([64, 32, 64], "batch 32 and 64 show the"),
        ([1, 128], ""),
    ],
)
def test_what_a_kernel_rewritten_since_measured_is_said(
    rows: list[int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.performance_replaced.REPLACED", {"01d": (17, 64)})
    told = note("01d", rows, "batch")
    assert bool(told) == bool(said)
    assert said in "".join(told)
    assert note("c0ffee", rows, "batch") == []


def test_profiles_and_sanitizer_runs_are_shown(tmp_path: Path) -> None:
    kernel = {
        "rows": 64,
        "columns": 256,
        "batch": 32,
        "density": 0.01,
        "alpha": "1",
        "us": 30.43,
        "instructions": 6_178_293,
        "warps_per_scheduler": 2.05,
        "cycles_per_instruction_of_a_warp": 7.6,
        "dram_percent": 6.74,
    }
    found = {
        "profile": {
            "command": "ncu bench",
            "made": "cut short",
            "kernels": [kernel],
            "samples": [{"batch": 32, "density": 0.01, "alpha": "1", "shares": {"wait": 0.22}}],
        },
        "sanitizer": {
            "checked": "all",
            "runs": [
                {
                    "command": "compute-sanitizer",
                    "found": 3,
                    "of": "hazards",
                    "layers": 24,
                    "failures": 1,
                }
            ],
        },
    }
    (tmp_path / FOLDER).mkdir(parents=True)
    for kind, result in found.items():
        text = json.dumps({"commit": "c0ffee", "device": "a card", **result})
        (tmp_path / FOLDER / f"card-{kind}.json").write_text(text)
    lines = section(tmp_path).splitlines()
    assert "| 64×256 | 32 | 1% | 1 | 30.4 | 6.18 M | 2.0 | 7.6 | 7% |" in lines
    assert "- M = 32, 1%, α = 1: wait 22%" in lines
    assert "- `compute-sanitizer`: 3 hazards; 24 layers, 1 failures" in lines
