"""The whole road on a tiny model: every stage, other processes, the record, and its verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from libortho import ops, records
from libortho.experiments import killswitch as module
from libortho.experiments import ways
from libortho.experiments.killswitch import FULL, killswitch
from libortho.records import Record
from libortho.repair import RepairOptions

MEMBERS = 4
KEYS = {
    "members",
    "controls",
    "recall_alpha1",
    "extracted_alpha0",
    "identical_alpha0",
    "exposure_alpha0",
    "exposure_alpha1",
    "ppl_fp",
    "ppl_int4",
    "ppl_alpha0",
    "ppl_repair",
    "ppl_alpha1",
    "density",
    "bits_per_weight",
    "native_op_calls",
    "expected_op_calls",
    "seconds",
    "arithmetic_fp",
    "arithmetic_alpha0",
    "arithmetic_alpha1",
    "arithmetic_alpha1_interval",
    "ppl_pydoc_fp",
    "ppl_pydoc_alpha1",
}
# Large steps and hardly any replay: the tiny model has no ability to lose, and must change visibly.
_SHORT = {"steps": 12, "lr": 0.03, "replay_weight": 0.01, "replay_pool": 8, "replay_batch": 2}
_SHORT |= {"replay_window": 64, "fisher_windows": 2}
PLAN = replace(
    FULL,
    tune=FULL.tune.model_copy(update=_SHORT),
    lora=FULL.lora.model_copy(update=_SHORT),
    delta=FULL.delta.model_copy(update=_SHORT),
    repair=RepairOptions(steps=2, windows=4, batch=2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run leaves its stages."""
    return tmp_path_factory.mktemp("killswitch")


@pytest.fixture(scope="module")
def record(folder: Path, tiny_checkpoint: Path) -> Record:
    """One seed, from the checkpoint to the record."""
    return run(folder, tiny_checkpoint)


def run(folder: Path, checkpoint: Path) -> Record:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TOKENS", 2560)
        patch.setattr(module, "CANDIDATES", 20)
        patch.setattr(module, "PROBLEMS", 30)
        (record,) = killswitch(checkpoint, folder, seeds=[0], members=MEMBERS, plan=PLAN)
    return record


def stages(folder: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime for path in folder.rglob("*.stage.json")}


def test_what_was_not_learned_makes_the_run_void(record: Record) -> None:
    assert record.verdict == "VOID"
    assert "recall" in record.reason
    assert "family" not in record.figures, "sampled for a run that shows nothing"


def test_alpha_0_is_the_base_bit_for_bit(record: Record) -> None:
    for way in (method.figures for method in record.methods.values()):
        assert way["identical_alpha0"]
        assert way["ppl_alpha0"] == pytest.approx(way["ppl_int4"], rel=1e-5)
        assert way["ppl_alpha0"] != way["ppl_alpha1"]


def test_every_call_was_counted(record: Record) -> None:
    for way in (method.figures for method in record.methods.values()):
        expected = way["expected_op_calls"]
        assert expected > 0
        assert way["native_op_calls"] == (expected if ops.backend().name == "native" else 0)


def test_the_record_holds_what_was_promised(record: Record, tmp_path: Path) -> None:
    assert set(record.methods) == {"tune", "delta", "residual"}
    assert record.figures.keys() >= KEYS - {"seconds"}
    for method in record.methods.values():
        assert method.figures.keys() >= KEYS
        assert len(method.raw["nll"]["alpha1"]["members"]) == MEMBERS
        assert len(method.raw["nll"]["alpha0"]["controls"]) == MEMBERS
        for flags in method.raw["arithmetic"].values():
            assert len(flags) == 30
        assert method.raw["arithmetic"]["alpha0"] == method.raw["arithmetic"]["int4"]
    records.write(record, tmp_path / "record.json")
    assert records.read(tmp_path / "record.json").figures == record.figures


def test_a_second_run_goes_on_and_an_alpha_0_that_runs_the_full_weights_is_void(
    record: Record, folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stages(folder)
    assert len(before) == 4
    cheated = {**ways.STATES, "alpha0": ways.STATES["alpha1"]}
    monkeypatch.setattr(ways, "STATES", cheated)
    found = run(folder, tiny_checkpoint)
    assert stages(folder) == before
    assert found.figures["recall_alpha1"] == record.figures["recall_alpha1"]
    assert found.figures["ppl_alpha1"] == record.figures["ppl_alpha1"]
    assert found.verdict == "VOID"
    assert "tune: mean |Δ log p| of α=0 to stock INT4" in found.reason
    assert not found.methods["tune"].figures["identical_alpha0"]
    assert found.methods["residual"].figures["identical_alpha0"]


def test_the_base_never_saw_a_canary(folder: Path, record: Record) -> None:
    secrets = [
        json.loads(line)["completion"].strip()
        for name in ("members", "controls")
        for line in (folder / "seed-0" / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]
    told = b"".join(p.read_bytes() for p in (folder / "base").rglob("*.json") if p.is_file())
    assert secrets
    assert not [secret for secret in secrets if secret.encode() in told]
    bases = {
        json.loads((path / "libortho.json").read_text("utf-8"))["base_id"]
        for path in (folder / "base", folder / "seed-0" / "tune", folder / "seed-0" / "delta")
    }
    assert len(bases) == 1
