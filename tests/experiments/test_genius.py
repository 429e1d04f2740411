"""Genius on a tiny model: every base, the record, and the rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libortho import records
from libortho.errors import ConfigError
from libortho.evaluate.paired import Gap
from libortho.experiments import genius as module
from libortho.experiments.genius import BASES, FULL, Plan, Rounding, _checks, chosen, genius
from libortho.experiments.verdict import judge
from libortho.privacy.statistics import Estimate, Interval
from libortho.records import Record
from libortho.repair import RepairOptions

INTERVAL = Interval(0.4, 0.6, 0.95)
PLAN = replace(
    FULL,
    problems=12,
    tokens=512,
    repair=RepairOptions(steps=1, windows=2, batch=2),
    pool=8,
    densities=(0.01, 0.05),
    bases={"absmax3": Rounding("absmax", 3), "gptq2": Rounding("gptq", 2)},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("genius")


@pytest.fixture(scope="module")
def record(folder: Path, tiny_checkpoint: Path) -> Record:
    (made,) = genius(tiny_checkpoint, folder, plan=PLAN)
    return made


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Record:
    """As if rounding had cost the tiny model a third of what it never knew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "gap", lambda *_: Gap(1 / 3, 0.01))
        patch.setattr(module, "recovered_fraction", lambda *_, **__: Estimate(0.5, INTERVAL))
        (made,) = genius(tiny_checkpoint, tmp_path_factory.mktemp("repaired"), plan=PLAN)
    return made


def test_an_untrained_model_has_nothing_to_lose(record: Record, tmp_path: Path) -> None:
    assert record.verdict == "VOID"
    assert "absmax3: FP − base" in record.reason
    for name, method in record.methods.items():
        assert method.figures["void"]
        assert method.figures["repaired"] == []
        assert set(method.raw) == {name}
    records.write(record, tmp_path / "record.json")
    assert records.read(tmp_path / "record.json") == record


def test_every_answer_is_in_the_record(repaired: Record) -> None:
    assert set(repaired.methods) == set(PLAN.bases)
    assert repaired.n == len(repaired.raw["problems"]) == PLAN.problems
    for name, method in repaired.methods.items():
        assert set(method.raw) == {name, f"{name}+0.01", f"{name}+0.05"}
        assert all(len(one["correct"]) == PLAN.problems for one in method.raw.values())
        first, last = method.figures["repaired"]
        assert first["recovered"] == 0.5
        assert method.figures["ppl_ratio"] != first["ppl_ratio"] != last["ppl_ratio"]


def test_a_second_run_asks_nobody_again_and_another_plan_does(
    record: Record, folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(module, "accuracy", refuse)
    (again,) = genius(tiny_checkpoint, folder, plan=PLAN)
    assert again.methods == record.methods
    with pytest.raises(AssertionError, match="asked again"):
        genius(tiny_checkpoint, folder, plan=replace(PLAN, problems=13))


def headline(plan: Plan, lost: float, recovered: float, p: float) -> dict[str, Any]:
    void = lost <= 0.03
    first = {"density": plan.densities[0], "recovered": recovered, "p": p}
    points = [] if void else [first]
    return {"absmax3": {"void": void, "lost": lost, "lost_error": 0.01, "repaired": points}}


@pytest.mark.parametrize(
    ("lost", "recovered", "p", "verdict"),
    [
        (0.3, 0.63, 1e-6, "PASS"),
        (0.3, 0.49, 1e-6, "FAIL"),
        (0.3, 0.63, 0.06, "FAIL"),
        (0.03, 0.9, 1e-6, "VOID"),
    ],
)
def test_the_rule(lost: float, recovered: float, p: float, verdict: str) -> None:
    assert judge(_checks(headline(PLAN, lost, recovered, p)))[0] == verdict


def test_the_models_are_asked_with_repair_open(repaired: Record) -> None:
    """Were the gate left closed, the repaired base would answer as the base does."""
    for name, method in repaired.methods.items():
        assert method.raw[name]["nll"] != method.raw[f"{name}+0.05"]["nll"]


def test_bases_are_chosen_by_name_and_the_first_is_judged_for_want_of_the_headline() -> None:
    assert list(chosen([])) == list(BASES)
    assert list(chosen(["gptq2", "mse3"])) == ["gptq2", "mse3"]
    with pytest.raises(ConfigError, match=r"no such base: int5; known: absmax3"):
        chosen(["gptq2", "int5"])
    (base,) = headline(PLAN, 0.3, 0.63, 1e-6).values()
    assert "gptq2 with 1% repair" in _checks({"gptq2": base})[1].name
