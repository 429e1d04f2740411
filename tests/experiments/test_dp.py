"""The dp experiment on a tiny model: trainings, the audit, the ablation, and the rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libortho import records
from libortho.errors import ConfigError
from libortho.experiments import dp as module
from libortho.experiments.dp import ABLATION, FULL, UNPROTECTED, _checks, dp
from libortho.experiments.verdict import Check, judge
from libortho.records import Record
from libortho.repair import RepairOptions
from libortho.tune import dpsgd
from libortho.tune.dpsgd import DPOptions

PLAN = replace(
    FULL,
    members=6,
    tokens=256,
    options=DPOptions(density=0.2, steps=15, lr=0.03),
    epsilons=(4.0,),
    noises=(0.0, 2.0),
    ways=replace(FULL.ways, repair=RepairOptions(steps=1, windows=2, batch=2)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dp")


@pytest.fixture(scope="module")
def void(folder: Path, tiny_checkpoint: Path) -> Record:
    pytest.importorskip("opacus")
    (made,) = dp(tiny_checkpoint, folder, plan=PLAN)
    return made


@pytest.fixture(scope="module")
def record(void: Record, folder: Path, tiny_checkpoint: Path) -> Record:
    """As if six secrets had proved something."""
    with pytest.MonkeyPatch.context() as patch:
        power = Check("power", True, "VOID", 9.0, "> 4")
        patch.setattr(module, "_power", lambda *_: power)
        (made,) = dp(tiny_checkpoint, folder, plan=PLAN)
    return made


def test_six_secrets_audit_nothing_and_the_run_is_void(void: Record, tmp_path: Path) -> None:
    assert void.verdict == "VOID"
    assert f"{UNPROTECTED}: audited lower bound" in void.reason
    assert set(void.methods) == {UNPROTECTED}, "nothing is trained after what decides"
    records.write(void, tmp_path / "record.json")
    assert records.read(tmp_path / "record.json") == void


def test_epsilon_is_printed_where_it_was_spent_and_nowhere_else(record: Record) -> None:
    spent = record.methods["eps-4"].figures
    assert 0 < spent["epsilon"] <= 4.0
    assert spent["noise_multiplier"] > 0
    assert record.methods[UNPROTECTED].figures["epsilon"] is None
    assert not [key for key in record.methods[ABLATION].figures if "epsilon" in key]
    points = record.methods[ABLATION].figures["ablation"]
    assert not [key for point in points for key in point if "epsilon" in key]


def test_noise_on_the_weights_starts_from_the_unprotected_stream(record: Record) -> None:
    silent, loud = record.methods[ABLATION].figures["ablation"]
    assert silent["nll"] == pytest.approx(record.methods[UNPROTECTED].figures["nll"], rel=1e-5)
    assert loud["nll"] > silent["nll"]


def test_a_second_run_trains_nothing_again(
    record: Record, folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train_privately", refuse)
    monkeypatch.setattr(module, "_power", lambda *_: Check("power", True, "VOID", 9.0, "> 4"))
    (again,) = dp(tiny_checkpoint, folder, plan=PLAN)
    assert again.methods == record.methods


def test_without_opacus_nothing_is_begun(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpsgd, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        dp(tiny_checkpoint, tmp_path, plan=PLAN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("unprotected", "audited", "verdict"),
    [(3.0, 0.4, "PASS"), (3.0, 1.1, "FAIL"), (0.9, 0.4, "VOID")],
)
def test_the_rule(unprotected: float, audited: float, verdict: str) -> None:
    figures = {
        UNPROTECTED: {"epsilon": None, "epsilon_lower": unprotected},
        "eps-1": {"epsilon": 1.0, "epsilon_lower": audited},
        "eps-8": {"epsilon": 8.0, "epsilon_lower": 2.0},
        ABLATION: {},
    }
    assert judge(_checks(figures, (1.0, 8.0)))[0] == verdict
