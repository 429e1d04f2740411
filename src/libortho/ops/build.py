"""Compiling the native libraries, CPU and CUDA: sources, flags and the key that names a build.

Imports nothing of libortho and nothing but the standard library, so that ``setup.py`` runs it too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
UNITS = (
    "core/layer.cpp",
    "cpu/dispatch.cpp",
    "cpu/scalar.cpp",
    "cpu/avx2.cpp",
    "cpu/avx512.cpp",
    "cpu/avx512bf16.cpp",
    "torch/binding.cpp",
)
# The stable ABI of libtorch 2.11: one library serves that release and every later one.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
UNIT_FLAGS = {
    "cpu/avx2.cpp": _AVX2,
    "cpu/avx512.cpp": _AVX512,
    "cpu/avx512bf16.cpp": (*_AVX512, "-mavx512bf16"),
}
CUDA_UNITS = ("cuda/dual_gemm.cu", "torch/binding_cuda.cpp")
NVCC_FLAGS = (
    "-std=c++17",
    "-O3",
    "--threads=0",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-gencode=arch=compute_80,code=[sm_80,compute_80]",
    "-gencode=arch=compute_90a,code=sm_90a",
)
_log = logging.getLogger(__name__)
_MARK = "libortho-source-key:"


class BuildError(RuntimeError):
    """The compiler is missing or refused the sources."""


def compiler() -> str | None:
    """The C++ compiler: ``$CXX``, else g++ or clang++ on the path, else None."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    return None


def nvcc() -> str | None:
    """CUDA's compiler: in ``$CUDA_HOME``, on the path, in /usr/local/cuda, else None."""
    home = os.environ.get("CUDA_HOME")
    for name in (f"{home}/bin/nvcc" if home else None, "nvcc", "/usr/local/cuda/bin/nvcc"):
        if name and (found := shutil.which(name)):
            return found
    return None


def cuda_obstacle(torch_root: Path) -> str | None:
    """Why the CUDA library cannot be built against this torch, None if it can."""
    if not (torch_root / "lib" / "libtorch_cuda.so").exists():
        return "this torch is built without CUDA"
    if nvcc() is None:
        return "no nvcc found: install the CUDA toolkit, or set CUDA_HOME"
    return None


def source_key(*, cuda: bool = False) -> str:
    """sha256 of every source file and flag: two builds with one key have the same code."""
    flags: tuple[object, ...] = (UNITS, FLAGS, sorted(UNIT_FLAGS.items()))
    if cuda:
        flags = (CUDA_UNITS, FLAGS, NVCC_FLAGS)
    digest = hashlib.sha256(repr(flags).encode())
    suffixes = {".h", ".cpp", ".cu", ".cuh"} if cuda else {".h", ".cpp"}
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in suffixes:
            digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def matches_sources(library: Path, *, cuda: bool = False) -> bool:
    """Whether ``library`` was built from the sources that lie here now."""
    return (_MARK + source_key(cuda=cuda)).encode() in library.read_bytes()


def build(output: Path, torch_root: Path, *, cuda: bool = False) -> None:
    """Compiles the CPU library, or the CUDA one.

    Args:
        output: the shared library to write; it appears whole or not at all.
        torch_root: the directory of the installed ``torch`` package.
        cuda: which of the two.

    Raises:
        BuildError: no compiler, or it failed; the message holds its first error.
    """
    cxx = compiler()
    if cxx is None:
        raise BuildError("no C++ compiler found: install g++, or set CXX")
    obstacle = cuda_obstacle(torch_root) if cuda else None
    if obstacle is not None:
        raise BuildError(obstacle)
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    include = torch_root / "include"
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        mark = Path(scratch) / "key.cpp"
        mark.write_text(
            'extern "C" __attribute__((used, visibility("default"))) '
            f'const char libortho_source_key[] = "{_MARK}{source_key(cuda=cuda)}";\n'
        )
        jobs = []
        for unit in (*(CUDA_UNITS if cuda else UNITS), str(mark)):
            target = Path(scratch) / (Path(unit).stem + ".o")
            if unit.endswith(".cu"):
                command = [str(nvcc()), *NVCC_FLAGS, f"-ccbin={cxx}"]
            else:
                x86 = platform.machine() in {"x86_64", "AMD64"}
                extra = UNIT_FLAGS.get(unit, ()) if x86 else ()
                command = [cxx, *FLAGS, *extra, "-isystem", str(include)]
                command += ["-DUSE_CUDA"] if cuda else []
            jobs.append([*command, "-c", str(SOURCES / unit), "-o", str(target)])
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(_run, jobs))
        whole = Path(scratch) / output.name
        objects = [job[-1] for job in jobs]
        link = [cxx, "-shared"]
        libraries = ["-L", str(torch_root / "lib"), "-ltorch_cpu", "-ltorch"]
        if cuda:  # nvcc knows where its runtime lies
            link = [str(nvcc()), "-shared", f"-ccbin={cxx}", "-cudart=static"]
            libraries.append("-ltorch_cuda")
        _run([*link, "-o", str(whole), *objects, *libraries])
        whole.replace(output)


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.splitlines()
        first = next((line for line in lines if "error" in line.lower()), done.stderr.strip())
        _log.debug("%s\n%s", " ".join(command), done.stderr)
        raise BuildError(f"{Path(command[0]).name} failed: {first} (logging at DEBUG shows it all)")
