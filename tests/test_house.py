"""The house's own laws: rooms in order, small files, a small public surface, no junk drawers."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "libortho"
MAX_LINES = 400
MAX_PUBLIC = 15
SOURCES = (".py", ".cpp", ".cc", ".h", ".hpp", ".cu", ".cuh")
JUNK_DRAWERS = ("utils", "util", "helpers", "helper", "misc", "common")


def sources() -> list[Path]:
    found = [
        path
        for folder in ("src", "csrc", "tests", "recipes", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SOURCES and path.is_file() and "build" not in path.parts
    ]
    assert found
    return found


def test_no_file_is_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long, f"longer than {MAX_LINES} lines: {long}"


def test_no_junk_drawers() -> None:
    parts = {path: (*path.relative_to(ROOT).parts[:-1], path.stem) for path in sources()}
    junk = [str(path) for path, names in parts.items() if set(names) & set(JUNK_DRAWERS)]
    assert not junk, f"name these after what they do: {junk}"


def test_the_public_surface_is_small_and_real() -> None:
    package = importlib.import_module("libortho")
    names = getattr(package, "__all__", [])
    assert len(names) == len(set(names)) <= MAX_PUBLIC
    absent = [name for name in names if not hasattr(package, name)]
    assert not absent, f"__all__ names what is not there: {absent}"


def test_the_rooms_import_one_way() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists():
        pytest.skip("import-linter is not installed: pip install -e .[dev]")
    ran = subprocess.run(
        [str(command), "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_library_never_prints() -> None:
    """Printing is the business of the command line and of scripts run as processes."""
    printing = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.relative_to(PACKAGE).parts[0] in ("cli", "cli.py") or "__main__" in text:
            continue
        printing += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ]
    assert not printing, f"log, or take a progress callback: {printing}"
