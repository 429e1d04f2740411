"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, every instruction set."""

from __future__ import annotations

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from libortho.ops import build

HERE = Path(__file__).parent
ROUNDS = 60
CPU_FLAGS = {
    "scalar": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"},
}
FLAGS = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fno-sanitize-recover=all", "-w")
# Weights are read through pointers of any alignment on purpose: layer.h asks for none.
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize=alignment")


def cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cxx = build.compiler()
    if cxx is None or platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip("needs a C++ compiler on x86-64")
    folder = tmp_path_factory.mktemp("sanitized")
    units = [unit for unit in build.UNITS if unit.split("/")[0] in ("core", "cpu")]
    jobs = []
    for unit in (*units, "fuzz.cpp"):
        source = HERE / unit if unit == "fuzz.cpp" else build.SOURCES / unit
        command = [cxx, *FLAGS, *SANITIZE, *build.UNIT_FLAGS.get(unit, ()), f"-I{build.SOURCES}"]
        jobs.append([*command, "-c", str(source), "-o", str(folder / f"{Path(unit).stem}.o")])
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda job: subprocess.run(job, check=True), jobs))
    whole = folder / "fuzz"
    subprocess.run([cxx, *SANITIZE, *(job[-1] for job in jobs), "-o", str(whole)], check=True)
    return whole


@pytest.mark.parametrize("isa", list(CPU_FLAGS))
def test_no_read_or_write_goes_astray(program: Path, isa: str) -> None:
    if not CPU_FLAGS[isa] <= cpu_flags():
        pytest.skip(f"this CPU lacks {isa}")
    ran = subprocess.run(
        [str(program), str(ROUNDS)],
        env={**os.environ, "LIBORTHO_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout == f"{ROUNDS} layers\n"
