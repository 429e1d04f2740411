"""``audit``, ``canaries`` and ``shadows`` as a user meets them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from libortho import audit, records
from libortho.audit.shadow_runs import ShadowRuns
from libortho.cli import ERROR, INTERRUPTED, run
from libortho.errors import ConfigError
from libortho.privacy.attacks import ATTACKS
from libortho.privacy.attacks.subject import Outcome, Subject
from libortho.privacy.encode import encode
from libortho.privacy.private_set import read_jsonl, write_jsonl
from libortho.privacy.shadows import MIN_RUNS


def test_missing_controls_are_an_error_with_the_command(
    tiny_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    data = tmp_path / "mine.jsonl"
    write_jsonl(
        data, [{"prompt": f"Row {i:02}:", "completion": f" value {i:02}"} for i in range(30)]
    )
    assert run(["audit", str(tiny_checkpoint), "--data", str(data)]) == ERROR
    said = capsys.readouterr().err
    assert "--controls" in said
    assert "libortho canaries 200 -o DIR" in said
    (command,) = (line.strip() for line in said.splitlines() if "shuf" in line)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    halves = [path.read_text("utf-8").splitlines() for path in sorted(tmp_path.glob("half-*"))]
    assert sorted(map(len, halves)) == [15, 15]
    assert sorted(halves[0] + halves[1]) == sorted(data.read_text("utf-8").splitlines())


@pytest.fixture(scope="module")
def shadows(tmp_path_factory, tiny_checkpoint: Path, tiny_tokenizer, files, memorise) -> Path:
    """Shadow runs, each trained on its half until a member is likelier than other rows."""
    out = tmp_path_factory.mktemp("audit") / "shadows"
    asked = ["--data", str(files.members), "--controls", str(files.controls), "-o", str(out)]
    assert run(["shadows", *asked]) == 0
    for folder in sorted(out.iterdir()):
        model = LlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
        rows = encode(tiny_tokenizer, read_jsonl(folder / "members.jsonl").examples)
        memorise(model, rows, steps=5)
        model.save_pretrained(folder / "model")
        tiny_tokenizer.save_pretrained(folder / "model")
    return out


def test_shadow_runs_carry_lira(leaking: Path, tiny_checkpoint: Path, files, shadows: Path) -> None:
    """They must tell a model that knows the members from one that knows nothing."""
    asked = {"controls": files.controls, "attacks": ["lira"], "shadows": shadows}
    record = audit(leaking, files.members, **asked)
    told = record.methods["as it is"].figures["attacks"]["lira"]["AUC"]
    assert told["n"] == 48
    assert told["value"] > 0.95
    found = audit(tiny_checkpoint, files.members, **asked)
    unseen = found.methods["as it is"].figures["attacks"]["lira"]["AUC"]
    assert unseen["low"] < 0.5 < unseen["high"]
    assert found.config["shadows"] == record.config["shadows"]


def test_shadow_runs_are_checked_before_any_is_scored(
    leaking: Path, files, shadows: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    asked = {"controls": files.controls, "attacks": ["lira"]}
    monkeypatch.setattr(ShadowRuns, "score", None)
    monkeypatch.setattr(importlib.import_module("libortho.audit.run"), "score", None)
    few = tmp_path / "few"
    few.mkdir()
    for folder in sorted(shadows.iterdir())[: MIN_RUNS - 1]:
        (few / folder.name).symlink_to(folder, target_is_directory=True)
    with pytest.raises(ConfigError, match=f"{MIN_RUNS - 1} runs, at least {MIN_RUNS}"):
        audit(leaking, files.members, shadows=few, **asked)
    with pytest.raises(ConfigError, match="22 of 44 examples are not at least twice"):
        audit(leaking, shadows / "00" / "members.jsonl", shadows=shadows, attacks=["lira"])
    empty = tmp_path / "empty"
    arguments = ["shadows", "--data", str(files.members), "-o", str(empty)]
    assert run([*arguments, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert len(made["runs"]) == len(made["commands"]) == MIN_RUNS
    for command in made["commands"]:
        assert re.match(r"libortho tune BASE --data \S+/members.jsonl -o \S+/model$", command)
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        audit(leaking, files.members, shadows=empty, **asked)
    assert run(arguments) == ERROR


def test_a_printed_command_can_be_copied(files, tmp_path: Path, capsys) -> None:
    out = tmp_path / (
        "a folder of a name so long that no terminal is wide enough".replace(" ", "-")
    )
    assert run(["shadows", "--data", str(files.members), "-o", str(out)]) == 0
    commands = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(commands) == MIN_RUNS
    for folder, command in zip(sorted(out.iterdir()), commands, strict=True):
        assert command.endswith(f"--data {folder}/members.jsonl -o {folder}/model")


def test_the_command_line_writes_a_record(tuned: Path, files, tmp_path: Path, capsys) -> None:
    out = tmp_path / "record.json"
    arguments = ["audit", str(tuned), "--data", str(files.members), "--attack", "loss"]
    assert run([*arguments, "--json", "-o", str(out)]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["verdict"] == "PASS"
    assert "24/24" in shown.err
    assert records.read(out).config["attacks"] == ["greedy", "loss"]
    assert run([*arguments, "-o", str(out)]) == ERROR
    assert "there already" in capsys.readouterr().err
    assert run([*arguments, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["attacks"] == ["loss"]


def test_a_record_is_named_after_its_model_and_date(
    tuned: Path, files, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["audit", str(tuned), "--data", str(files.members), "--attack", "loss", "--json"]
    run_loss = ATTACKS["loss"].run
    stopped = dataclasses.replace(ATTACKS["loss"], run=_interrupt)
    monkeypatch.setitem(ATTACKS, "loss", stopped)
    assert run(arguments) == INTERRUPTED
    assert "the same command goes on from there" in " ".join(capsys.readouterr().err.split())
    (kept,) = (tmp_path / "records/audit").iterdir()
    assert re.match(r"tuned-[0-9a-f]{16}\.partial$", kept.name)
    assert (kept / "greedy.0.json").is_file()
    monkeypatch.setitem(ATTACKS, "loss", dataclasses.replace(stopped, run=run_loss))
    assert run(arguments) == 0
    (made,) = (tmp_path / "records/audit").iterdir()
    assert re.match(r"tuned-\d{4}-\d\d-\d\dT\d{6}Z\.json$", made.name)
    assert json.loads(capsys.readouterr().out)["record"] == f"records/audit/{made.name}"


def _interrupt(subject: Subject) -> Outcome:
    raise KeyboardInterrupt


def test_canaries_are_frozen_with_their_hash(tmp_path: Path, capsys) -> None:
    out = tmp_path / "drawn"
    assert run(["canaries", "5", "-o", str(out), "--kind", "base62", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["secret_bits"] == pytest.approx(95.27, abs=0.01)
    assert sorted(Path(file).name for file in made["files"]) == ["controls.jsonl", "members.jsonl"]
    assert run(["canaries", "5", "-o", str(out)]) == ERROR
