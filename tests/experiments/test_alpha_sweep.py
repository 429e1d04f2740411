"""The sweep on a tiny model: a point an α, resumable, and VOID where nothing was learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libortho import records
from libortho.errors import ConfigError
from libortho.experiments import alpha_sweep as module
from libortho.experiments.alpha_sweep import FULL, SMALL, alpha_sweep
from libortho.records import Record
from libortho.repair import RepairOptions

MEMBERS = 4
SHORT = {"steps": 25, "lr": 0.03, "replay_weight": 0.01, "replay_pool": 8, "replay_batch": 2}
SHORT |= {"replay_window": 64, "fisher_windows": 2, "density": 0.2, "settle": 2}
PLAN = replace(
    FULL,
    problems=6,
    tokens=256,
    alphas=(0.0, 0.5, 1.0),
    ways=replace(
        FULL.ways,
        members=MEMBERS,
        tune=FULL.ways.tune.model_copy(update=SHORT),
        repair=RepairOptions(steps=1, windows=2, batch=2),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def record(folder: Path, tiny_checkpoint: Path) -> Record:
    (made,) = alpha_sweep(tiny_checkpoint, folder, seeds=[0], plan=PLAN)
    return made


def with_ways(**changes: Any) -> module.Plan:
    return replace(PLAN, ways=replace(PLAN.ways, **changes))


def test_only_tune_is_made(record: Record, folder: Path) -> None:
    stages = {file.name for file in (folder / "seed-0").glob("*.stage.json")}
    assert stages == {"tuned.stage.json"}
    assert set(record.methods) == {"tune"}


def test_each_alpha_has_its_point_and_they_differ(record: Record, tmp_path: Path) -> None:
    sweep = record.methods["tune"].figures["sweep"]
    assert [point["alpha"] for point in sweep] == list(PLAN.alphas)
    closed, half, opened = sweep
    assert closed["nll"] > half["nll"] > opened["nll"]
    assert closed["ppl"] != opened["ppl"]
    assert len(record.methods["tune"].raw["sweep"][0]["correct"]) == PLAN.problems
    records.write(record, tmp_path / "record.json")
    assert records.read(tmp_path / "record.json") == record


def test_the_power_gate_decides(record: Record) -> None:
    learned = record.methods["tune"].figures["sweep"][-1]["recall"] >= 0.95
    assert record.verdict == ("PASS" if learned else "VOID")
    forgotten = [{**point, "exact": [[0] * MEMBERS] * 2} for point in points(record)]
    assert judged(record, forgotten).verdict == "VOID"
    recited = [{**point, "exact": [[1] * MEMBERS, [0] * MEMBERS]} for point in points(record)]
    assert judged(record, recited).verdict == "PASS"
    uncounted = [{**point, "native_op_calls": 1, "expected_op_calls": 2} for point in recited]
    if record.backend.startswith("native"):
        assert judged(record, uncounted).verdict == "VOID"


def points(record: Record) -> list[dict[str, Any]]:
    calls = {"native_op_calls": 2, "expected_op_calls": 2}
    return [{**point, **calls} for point in record.methods["tune"].raw["sweep"]]


def judged(record: Record, found: list[dict[str, Any]]) -> Record:
    made = module.Made(
        base=None,
        canaries=module.ways.make_canaries(MEMBERS, 0),
        members=[None] * MEMBERS,
        controls=[None] * MEMBERS,
        merged=Path(),
        ways=[],
        curves={"tune": {}},
        seconds={"tune": 0.0},
    )
    return module._record("tiny", made, PLAN, found, 0, 0.0)


def test_a_second_run_measures_nothing_again(
    record: Record, folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "load", refuse)
    (again,) = alpha_sweep(tiny_checkpoint, folder, seeds=[0], plan=PLAN)
    assert again.methods["tune"].figures == record.methods["tune"].figures


def test_a_folder_with_other_canaries_is_refused(
    record: Record, folder: Path, tiny_checkpoint: Path
) -> None:
    with pytest.raises(ConfigError, match="--members 4"):
        alpha_sweep(tiny_checkpoint, folder, seeds=[0], plan=with_ways(members=5))
    kept = (folder / "seed-0" / "members.jsonl").read_text("utf-8")
    assert len(kept.splitlines()) == MEMBERS


def test_a_folder_of_another_plan_is_refused_with_what_differs(
    record: Record, folder: Path, tiny_checkpoint: Path
) -> None:
    longer = with_ways(tune=PLAN.ways.tune.model_copy(update={"steps": 26}))
    with pytest.raises(ConfigError, match=r"ways\.plan\.json .*: tune\.steps is 25 there and 26 "):
        alpha_sweep(tiny_checkpoint, folder, seeds=[0], plan=longer)
    other = with_ways(repair=RepairOptions(steps=3, windows=2, batch=2))
    with pytest.raises(ConfigError, match=r"base\.plan\.json .*: repair\.steps is 1 there and 3 "):
        alpha_sweep(tiny_checkpoint, folder, seeds=[0], plan=other)


def test_without_recall_at_the_largest_alpha_no_other_is_measured(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    short = with_ways(tune=PLAN.ways.tune.model_copy(update={"steps": 1, "lr": 1e-6}))
    (made,) = alpha_sweep(tiny_checkpoint, tmp_path, seeds=[0], plan=short)
    assert made.verdict == "VOID"
    assert [point["alpha"] for point in made.methods["tune"].figures["sweep"]] == [1.0]


def test_the_small_plan_is_small_in_what_it_trains() -> None:
    assert SMALL.ways.members < FULL.ways.members
    assert SMALL.ways.tune.steps < FULL.ways.tune.steps
