"""A pytest plugin: a run of a long suite leaves a dated record, whatever its outcome.

python -m pytest -p recipes.dated_record --record records/matrix tests-matrix
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from libortho import ops, records

SEED = 0
_figures: dict[str, Any] = {}
_outcomes: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record", type=Path, help="Folder of the dated record, which is named after it."
    )
    parser.addoption(
        "--on", choices=("cpu", "cuda"), default="cpu", help="Whose backend the record names."
    )


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    """What the record of this run will hold beside the outcomes: write to it by name."""
    return _figures


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    folder = session.config.getoption("--record")
    if not _outcomes or folder is None:
        return
    by_outcome: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for name, outcome in sorted(_outcomes.items()):
        by_outcome[outcome].append(name)
    passed, failed, skipped = by_outcome.values()
    verdict, reason = judged(len(passed), len(failed), len(skipped), exitstatus)
    backend = ops.cuda_backend() if session.config.getoption("--on") == "cuda" else ops.backend()
    record = records.new(
        folder.name,
        verdict,
        n=len(passed) + len(failed),
        seeds=[SEED],
        backend=f"{backend.name} {backend.isa}",
        reason=reason,
        config={"failed": list(failed), "skipped": list(skipped), "tests": list(passed)},
        figures=_figures,
    )
    records.write(record, folder / f"{folder.name}-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json")


def judged(passed: int, failed: int, skipped: int, exitstatus: int) -> tuple[records.Verdict, str]:
    """Verdict and reason; VOID where nothing ran, or not all that was asked for."""
    beside = f", {skipped} skipped" if skipped else ""
    if failed:
        return "FAIL", f"{failed} of {passed + failed} tests failed{beside}"
    if not passed or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return "VOID", f"{passed} tests passed{beside}; pytest ended with status {int(exitstatus)}"
    return "PASS", f"{passed} tests passed{beside}"
