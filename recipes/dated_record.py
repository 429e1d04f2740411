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


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    """What the record of this run will hold beside the outcomes: write to it by name."""
    return _figures


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    folder = session.config.getoption("--record")
    if not _outcomes or folder is None:
        return
    failed = sorted(name for name, outcome in _outcomes.items() if outcome == "failed")
    cpu, cuda = ops.backend(), ops.cuda_backend()
    found = cuda if cuda.name == "native" else cpu
    record = records.new(
        folder.name,
        "FAIL" if failed else "PASS",
        n=len(_outcomes),
        seeds=[SEED],
        backend=f"{found.name} {found.isa}",
        reason=f"{len(failed)} of {len(_outcomes)} tests failed"
        if failed
        else f"{len(_outcomes)} tests passed",
        config={"failed": list(failed), "tests": sorted(_outcomes)},
        figures=_figures,
    )
    records.write(record, folder / f"{folder.name}-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json")
