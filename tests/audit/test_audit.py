"""An audit passes what cannot know, fails what does, and voids what shows nothing."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from libortho import audit, records
from libortho.errors import ConfigError, LibOrthoError
from libortho.privacy.attacks import ATTACKS
from libortho.privacy.private_set import write_jsonl

CHEAP = ("loss", "prefix")


def test_an_exact_stream_passes_every_attack(tuned: Path, files, quick, tmp_path: Path) -> None:
    record = audit(tuned, files.members, controls=files.controls, budget=quick)
    assert record.verdict == "PASS", record.reason
    assert record.experiment == "audit"
    assert record.n == 24
    assert record.figures["states"] == ["α = 0", "α = 1"]
    assert record.figures["judged"] == ["α = 0"]
    assert set(record.not_run) == {"lira"}
    assert "libortho shadows" in record.not_run["lira"]
    closed, opened = (record.methods[f"α = {a}"] for a in "01")
    assert closed.figures["judged"] is True
    # What works on weights is asked of the judged state alone.
    assert set(closed.figures["attacks"]) == ATTACKS.keys() - {"lira"}
    assert set(opened.figures["attacks"]) == {
        name for name, attack in ATTACKS.items() if not attack.weights and name != "lira"
    }
    for attack in (*closed.figures["attacks"].values(), *opened.figures["attacks"].values()):
        for figure in attack.values():
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["n"] > 0
    assert opened.figures["attacks"]["greedy"]["recited"]["count"] == 24
    assert opened.figures["attacks"]["loss"]["AUC"]["value"] == 1
    assert closed.figures["attacks"]["relearn"]["steps to half"]["n"] == 12
    assert record.figures["reference"] == "the same base with every stream closed"
    family = record.figures["family"]
    assert len(family["listed"]) == len(family["adjusted"]) == 14
    records.write(record, tmp_path / "audit.json")
    assert records.read(tmp_path / "audit.json").methods["α = 0"].raw == closed.raw


def test_a_plain_checkpoint_that_recites_fails(leaking: Path, tiny_checkpoint: Path, files) -> None:
    record = audit(leaking, files.members, reference=tiny_checkpoint, attacks=["reference"])
    assert record.verdict == "FAIL"
    assert record.figures["states"] == ["as it is"]
    assert record.config["controls_drawn"] is True
    assert record.backend == "stock transformers"
    assert "Greedy extraction" in record.reason
    found = record.methods["as it is"].figures["attacks"]
    assert found["greedy"]["recited"]["count"] == 24
    assert found["greedy"]["recited, controls"]["count"] == 0
    assert found["reference"]["AUC"]["value"] == 1


def test_a_plain_checkpoint_that_never_saw_the_data_passes(tiny_checkpoint: Path, files) -> None:
    record = audit(tiny_checkpoint, files.members, controls=files.controls, attacks=CHEAP)
    assert record.verdict == "PASS", record.reason


def test_other_data_is_judged_against_its_controls(
    leaking: Path, tiny_checkpoint: Path, files, tmp_path: Path
) -> None:
    """The same rows with a stop behind them are not our canaries: nothing is known of their law."""
    paths = []
    for half in (files.members, files.controls):
        rows = [json.loads(line) for line in half.read_text("utf-8").splitlines()]
        paths.append(tmp_path / half.name)
        # Five digits of twenty: short enough to be recited, and of another form.
        cut = ({"prompt": r["prompt"], "completion": r["completion"][:6]} for r in rows)
        write_jsonl(paths[-1], cut)
    for model, verdict in ((tiny_checkpoint, "PASS"), (leaking, "FAIL")):
        record = audit(model, paths[0], controls=paths[1], attacks=["greedy", "loss"])
        assert record.config["kind"] is None
        assert record.verdict == verdict, record.reason
        assert not any("extracted" in check["name"] for check in record.figures["checks"])


def test_without_power_an_audit_is_void(tuned: Path, files) -> None:
    """Only the closed state was looked at: that it is silent shows nothing."""
    record = audit(tuned, files.members, controls=files.controls, alphas=["0"], attacks=CHEAP)
    assert record.verdict == "VOID"
    assert "recall" in record.reason
    record = audit(tuned, files.members, controls=files.controls, limit=19, attacks=CHEAP)
    assert record.verdict == "VOID"
    assert "wanted ≥ 20" in record.reason


def test_open_streams_are_judged_when_nothing_closed_is_asked(tuned: Path, files) -> None:
    record = audit(tuned, files.members, controls=files.controls, alphas=["1"], attacks=CHEAP)
    assert record.verdict == "FAIL"
    assert record.figures["judged"] == ["α = 1"]


def test_states_are_ordered_by_what_they_open(tuned: Path, files) -> None:
    record = audit(
        tuned,
        files.members,
        controls=files.controls,
        alphas=["1", "private=0.5", "0", "private=0"],
        attacks=["loss"],
    )
    assert record.figures["judged"] == ["α = 0", "α = private=0"]
    assert record.figures["states"][-2:] == ["α = private=0.5", "α = 1"]
    assert record.verdict == "PASS", record.reason


def test_a_missing_reference_is_an_error_with_the_command(leaking: Path, files) -> None:
    with pytest.raises(ConfigError, match="libortho quantize PUBLIC"):
        audit(leaking, files.members)
    with pytest.raises(ConfigError, match="libortho shadows --data"):
        audit(leaking, files.members, attacks=["lira"])


def test_rows_in_both_files_are_refused(tiny_checkpoint: Path, files) -> None:
    with pytest.raises(ConfigError, match="24 row"):
        audit(tiny_checkpoint, files.members, controls=files.members, attacks=CHEAP)


def test_what_does_not_fit_is_refused(leaking: Path, tuned: Path, files) -> None:
    with pytest.raises(ConfigError, match="no gate"):
        audit(leaking, files.members, alphas=["0"], attacks=CHEAP)
    with pytest.raises(ConfigError, match="unknown attack"):
        audit(leaking, files.members, attacks=["guess"])
    with pytest.raises(LibOrthoError, match="not attached"):
        audit(tuned, files.members, alphas=["crm=1"], attacks=CHEAP)


def test_the_family_is_named_before_the_run(tuned: Path, files, monkeypatch) -> None:
    """A test that appears only once results are known must not enter the verdict."""
    module = importlib.import_module("libortho.audit.run")
    monkeypatch.setattr(module, "family", lambda *_: ["α = 0/loss"])
    with pytest.raises(ConfigError, match="unlisted"):
        audit(tuned, files.members, controls=files.controls, attacks=["loss"])
