"""An audit passes what cannot know, fails what does, and voids what shows nothing."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch

from libortho import audit, records
from libortho.audit.choose import choose
from libortho.audit.data import read_data
from libortho.audit.parts import Done, Parts
from libortho.audit.target import open_target
from libortho.errors import ConfigError, FormatError, LibOrthoError, NumericsError
from libortho.privacy.attacks import ATTACKS, Attack
from libortho.privacy.attacks.subject import Figure, Outcome, Subject
from libortho.privacy.canaries import make_canaries
from libortho.privacy.private_set import write_jsonl

CHEAP = ("loss", "prefix")


def test_an_exact_stream_passes_every_attack(tuned: Path, files, quick, tmp_path: Path) -> None:
    out = tmp_path / "audit.json"
    record = audit(tuned, files.members, controls=files.controls, budget=quick, out=out)
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
    assert records.read(out).methods["α = 0"].raw == closed.raw
    assert list(tmp_path.iterdir()) == [out]


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


def test_silence_of_a_plain_checkpoint_is_void_without_a_positive_control(
    leaking: Path, tiny_checkpoint: Path, files
) -> None:
    """A model that never met the data would pass any attack, however blunt."""
    asked = {"controls": files.controls, "attacks": CHEAP}
    record = audit(tiny_checkpoint, files.members, **asked)
    assert record.verdict == "VOID"
    assert "recall (no --positive was given) is 0" in record.reason
    record = audit(tiny_checkpoint, files.members, positive=leaking, **asked)
    assert record.verdict == "PASS", record.reason
    assert record.figures["positive_recall"] == 1
    record = audit(tiny_checkpoint, files.members, positive=tiny_checkpoint, **asked)
    assert record.verdict == "VOID"
    assert "positive control: recall is 0" in record.reason
    assert "void before this attack" in record.not_run["loss"]


def test_a_leak_needs_no_positive_control(leaking: Path, files) -> None:
    record = audit(leaking, files.members, controls=files.controls, attacks=CHEAP)
    assert record.verdict == "FAIL"
    assert all(check["decides"] == "FAIL" or check["held"] for check in record.figures["checks"])


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
    for model, verdict in ((tiny_checkpoint, "VOID"), (leaking, "FAIL")):
        record = audit(model, paths[0], controls=paths[1], attacks=["greedy", "loss"])
        assert record.config["kind"] is None
        assert record.verdict == verdict, record.reason
        assert not any("extracted" in check["name"] for check in record.figures["checks"])


@pytest.fixture
def attacked(monkeypatch) -> list[str]:
    """Names of the attacks that are run from here on."""
    seen: list[str] = []

    def watched(name: str, attack: Attack) -> Attack:
        def run(subject: Subject) -> Outcome:
            seen.append(name)
            return attack.run(subject)

        return dataclasses.replace(attack, run=run)

    for name, attack in ATTACKS.items():
        monkeypatch.setitem(ATTACKS, name, watched(name, attack))
    return seen


def test_what_makes_an_audit_void_is_looked_at_before_any_attack(
    tuned: Path, files, attacked: list[str]
) -> None:
    """Only the closed state was looked at, or too few rows: that it is silent shows nothing."""
    for narrow, why in (({"alphas": ["0"]}, "recall"), ({"limit": 19}, "wanted ≥ 20")):
        attacked.clear()
        record = audit(tuned, files.members, controls=files.controls, **narrow)
        assert record.verdict == "VOID"
        assert why in record.reason
        assert set(attacked) == {"greedy"}
        assert set(record.not_run) == ATTACKS.keys() - {"greedy"}
        assert record.figures["family"]["listed"] == []
        assert record.methods["α = 0"].figures["attacks"]["greedy"]["recited"]["count"] == 0


def test_an_interrupted_audit_goes_on_where_it_ended(
    tuned: Path, files, quick, tmp_path: Path, attacked: list[str], monkeypatch
) -> None:
    asked = {
        "controls": files.controls,
        "budget": quick,
        "attacks": ["prefix", "loss", "requantise", "relearn"],
    }
    whole = audit(tuned, files.members, **asked)
    before = list(attacked)
    attacked.clear()
    broken = ATTACKS["requantise"]

    def interrupted(subject: Subject) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setitem(ATTACKS, "requantise", dataclasses.replace(broken, run=interrupted))
    out = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        audit(tuned, files.members, out=out, **asked)
    assert not out.exists()
    done = list(attacked)
    assert done == ["greedy", "prefix", "loss"]
    monkeypatch.setitem(ATTACKS, "requantise", broken)
    # Another seed is another audit: nothing of the first may enter it.
    attacked.clear()
    audit(tuned, files.members, out=tmp_path / "other.json", seed=1, **asked)
    assert attacked == before
    attacked.clear()
    record = audit(tuned, files.members, out=out, **asked)
    assert done + attacked == before
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["other.json", "record.json"]
    for state, method in whole.methods.items():
        found = records.read(out).methods[state]
        assert found.raw == method.raw
        assert found.figures["attacks"] == method.figures["attacks"]
    assert record.figures["family"] == whole.figures["family"]
    assert record.figures["seconds"] >= sum(
        sum(method.figures["seconds"].values()) for method in record.methods.values()
    )
    with pytest.raises(ConfigError, match="there already"):
        audit(tuned, files.members, out=out, **asked)


def test_a_part_that_was_altered_is_refused(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "model", {"seed": 0})
    outcome = Outcome({"AUC": Figure(0.5, 0.4, 0.6, 24)}, {"members": [1.0]}, (), {"way": 3})
    parts.write("loss", 0, Done(outcome, 1.5))
    assert Parts(tmp_path, "model", {"seed": 0}).read("loss", 0) == Done(outcome, 1.5)
    assert Parts(tmp_path, "model", {"seed": 1}).read("loss", 0) is None
    assert parts.read("loss", 1) is None
    (parts.path / "loss.0.json").write_text("{}")
    with pytest.raises(FormatError, match="delete it"):
        parts.read("loss", 0)
    with pytest.raises(NumericsError, match="loss"):
        parts.write("loss", 0, Done(Outcome({}, {"members": [float("nan")]}), 1.0))


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


def test_beam_is_not_applicable_where_there_is_no_alphabet(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files = tmp_path / "members.jsonl", tmp_path / "controls.jsonl"
    make_canaries(20, 0, "bios").write(*files)
    with pytest.raises(ConfigError, match="bios are sentences"):
        audit(tiny_checkpoint, files[0], controls=files[1], attacks=["beam"])
    target = open_target(tiny_checkpoint, None, device="cpu", dtype=torch.float32)
    rows = read_data(*files)
    for kind, why in (("bios", "bios are sentences"), (None, "own canaries"), ("digits", None)):
        data = dataclasses.replace(rows, kind=kind)
        given = {"data_file": files[0], "reference": tiny_checkpoint, "shadows": None}
        chosen = choose(None, target, data, **given)
        assert ("beam" in chosen.attacks) == (why is None)
        if why is not None:
            assert "not applicable" in chosen.not_run["beam"]
            assert why in chosen.not_run["beam"]


def test_rows_in_both_files_are_refused(tiny_checkpoint: Path, files) -> None:
    with pytest.raises(ConfigError, match="24 row"):
        audit(tiny_checkpoint, files.members, controls=files.members, attacks=CHEAP)


def test_what_does_not_fit_is_refused(leaking: Path, tuned: Path, files) -> None:
    with pytest.raises(ConfigError, match="no gate"):
        audit(leaking, files.members, alphas=["0"], attacks=CHEAP)
    with pytest.raises(ConfigError, match="unknown attack"):
        audit(leaking, files.members, attacks=["guess"])
    with pytest.raises(ConfigError, match="leave it out"):
        audit(tuned, files.members, positive=leaking, attacks=CHEAP)
    with pytest.raises(LibOrthoError, match="not attached"):
        audit(tuned, files.members, alphas=["crm=1"], attacks=CHEAP)


def test_the_family_is_named_before_the_run(tuned: Path, files, monkeypatch) -> None:
    """A test that appears only once results are known must not enter the verdict."""
    module = importlib.import_module("libortho.audit.run")
    monkeypatch.setattr(module, "family", lambda *_: ["α = 0/loss"])
    with pytest.raises(ConfigError, match="unlisted"):
        audit(tuned, files.members, controls=files.controls, attacks=["loss"])
