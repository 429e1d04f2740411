"""``audit``, ``canaries`` and ``shadows`` as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from libortho import audit, records
from libortho.cli import ERROR, run
from libortho.errors import ConfigError
from libortho.privacy.private_set import write_jsonl
from libortho.privacy.shadows import MIN_RUNS


def test_missing_controls_are_an_error_with_the_command(
    tiny_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    data = tmp_path / "mine.jsonl"
    write_jsonl(data, [{"prompt": f"Row {i}:", "completion": f" value {i}"} for i in range(30)])
    assert run(["audit", str(tiny_checkpoint), "--data", str(data)]) == ERROR
    said = capsys.readouterr().err
    assert "--controls" in said
    assert "libortho canaries 200 -o DIR" in said
    assert f"shuf {data}" in said


def test_shadow_runs_carry_lira(
    leaking: Path, tiny_checkpoint: Path, files, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "shadows"
    assert run(["shadows", "--data", str(files.members), "-o", str(out), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert len(made["runs"]) == len(made["commands"]) == MIN_RUNS
    for command in made["commands"]:
        assert re.match(r"libortho tune BASE --data \S+/members.jsonl -o \S+/model$", command)
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        audit(leaking, files.members, attacks=["lira"], shadows=out)
    for folder in made["runs"]:
        (Path(folder) / "model").symlink_to(tiny_checkpoint, target_is_directory=True)
    record = audit(leaking, files.members, attacks=["lira"], shadows=out)
    assert record.methods["as it is"].figures["attacks"]["lira"]["AUC"]["n"] == 48
    assert run(["shadows", "--data", str(files.members), "-o", str(out)]) == ERROR


def test_the_command_line_writes_a_record(tuned: Path, files, tmp_path: Path, capsys) -> None:
    out = tmp_path / "record.json"
    arguments = ["audit", str(tuned), "--data", str(files.members), "--attack", "loss"]
    assert run([*arguments, "--json", "-o", str(out)]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["verdict"] == "PASS"
    assert "24/24" in shown.err
    assert records.read(out).config["attacks"] == ["greedy", "loss"]
    assert run([*arguments, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["attacks"] == ["loss"]


def test_canaries_are_frozen_with_their_hash(tmp_path: Path, capsys) -> None:
    out = tmp_path / "drawn"
    assert run(["canaries", "5", "-o", str(out), "--kind", "base62", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["secret_bits"] == pytest.approx(95.27, abs=0.01)
    assert sorted(Path(file).name for file in made["files"]) == ["controls.jsonl", "members.jsonl"]
    assert run(["canaries", "5", "-o", str(out)]) == ERROR
