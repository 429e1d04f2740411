"""The CUDA kernel's own source, run on the CPU lane by lane; a GPU run can then find only speed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from libortho.ops import build

FOLDER = Path(__file__).parent / "emulated"
RAW = Path(__file__).parents[2] / "benchmarks" / "raw"


def test_cuda_kernel_emulated(tmp_path: Path) -> None:
    """Fragments, plans and decodings; every route against float64; alpha 0 reads no stream."""
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "run"
    includes = [f"-I{folder}" for folder in (build.SOURCES, FOLDER, RAW)]
    flags = ["-std=c++17", "-O2", "-pthread", "-Wno-unknown-pragmas", "-DORTH_EMULATED"]
    flags += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
    command = [compiler, *flags, *includes, str(FOLDER / "run.cpp"), "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    ran = subprocess.run([program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr
