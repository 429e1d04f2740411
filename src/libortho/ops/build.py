"""Compiling the native library: sources, flags and the key that names a build.

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


def source_key() -> str:
    """sha256 of every source file and flag: two builds with one key have the same code."""
    digest = hashlib.sha256(repr((UNITS, FLAGS, sorted(UNIT_FLAGS.items()))).encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in {".h", ".cpp"}:
            digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def matches_sources(library: Path) -> bool:
    """Whether ``library`` was built from the sources that lie here now."""
    return (_MARK + source_key()).encode() in library.read_bytes()


def build(output: Path, torch_root: Path) -> None:
    """Compiles the library.

    Args:
        output: the shared library to write; it appears whole or not at all.
        torch_root: the directory of the installed ``torch`` package.

    Raises:
        BuildError: no compiler, or it failed; the message holds its first error.
    """
    cxx = compiler()
    if cxx is None:
        raise BuildError("no C++ compiler found: install g++, or set CXX")
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    include = torch_root / "include"
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        mark = Path(scratch) / "key.cpp"
        mark.write_text(
            'extern "C" __attribute__((used, visibility("default"))) '
            f'const char libortho_source_key[] = "{_MARK}{source_key()}";\n'
        )
        jobs = []
        for unit in (*UNITS, str(mark)):
            extra = UNIT_FLAGS.get(unit, ()) if platform.machine() in {"x86_64", "AMD64"} else ()
            target = Path(scratch) / (Path(unit).stem + ".o")
            command = [cxx, *FLAGS, *extra, "-isystem", str(include), "-c", str(SOURCES / unit)]
            jobs.append([*command, "-o", str(target)])
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(_run, jobs))
        whole = Path(scratch) / output.name
        objects = [job[-1] for job in jobs]
        libraries = ["-L", str(torch_root / "lib"), "-ltorch_cpu", "-ltorch"]
        _run([cxx, "-shared", "-o", str(whole), *objects, *libraries])
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
