"""The dated record of a long suite: what did not run is never told as passed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from recipes.dated_record import judged
from recipes.readme import ROOT

from libortho import records

SUITE = """
import pytest
def test_runs(figures): figures["found"] = 3
@pytest.mark.skip(reason="not here")
def test_skipped(): raise AssertionError
"""


@pytest.mark.parametrize(
    ("passed", "failed", "skipped", "status", "verdict"),
    [
        (2, 0, 0, 0, "PASS"),
        (2, 0, 1, 0, "PASS"),
        (2, 1, 0, 1, "FAIL"),
        (0, 0, 98, 0, "VOID"),
        (5, 0, 0, 2, "VOID"),  # interrupted
    ],
)
def test_the_verdict(passed: int, failed: int, skipped: int, status: int, verdict: str) -> None:
    assert judged(passed, failed, skipped, status)[0] == verdict


def test_a_run_leaves_its_record(tmp_path: Path) -> None:
    suite = tmp_path / "test_suite.py"
    suite.write_text(SUITE, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "recipes.dated_record"]
    where = ["--record", str(tmp_path / "suite"), "-c", str(tmp_path / "none.ini"), str(suite)]
    (tmp_path / "none.ini").write_text("[pytest]\n", "utf-8")
    subprocess.run([*command, *where], cwd=ROOT, check=True, capture_output=True)
    (file,) = (tmp_path / "suite").glob("suite-*.json")
    record = records.read(file)
    assert (record.experiment, record.verdict, record.n) == ("suite", "PASS", 1)
    assert record.reason == "1 tests passed, 1 skipped"
    assert record.figures["found"] == 3
    assert len(record.config["skipped"]) == 1
