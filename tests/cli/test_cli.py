"""The command line as a user meets it: exit statuses, stdout and stderr."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from libortho.cli import ERROR, USAGE, run
from libortho.model import load, memory
from libortho.streams.base import BaseStream
from libortho.streams.ortho import STREAM_FOLDER
from libortho.streams.ortho_writer import write_stream


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    out = tmp_path_factory.mktemp("cli") / "base"
    assert run(["quantize", str(tiny_checkpoint), "-o", str(out), "--method", "mse"]) == 0
    return out


@pytest.mark.parametrize(
    "arguments", [["nope"], ["tune"], ["generate"], ["quantize", "x", "-o", "y", "--bits", "9"]]
)
def test_wrong_usage_is_no_verdict(arguments: list[str], capsys) -> None:
    assert run(arguments) == USAGE
    assert capsys.readouterr().out == ""


def test_an_error_says_what_and_is_no_verdict(tmp_path: Path, capsys) -> None:
    assert run(["inspect", str(tmp_path)]) == ERROR
    shown = capsys.readouterr()
    assert "libortho.json" in shown.err
    assert shown.out == ""


def test_inspect_and_verify_speak_json(base: Path, capsys) -> None:
    assert run(["inspect", str(base), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["base_id"]
    assert found["streams"] == {}
    assert run(["verify", str(base), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_inspect_tells_the_memory_of_every_tenant(
    tmp_path: Path, tiny_base: Path, make_layers, capsys
) -> None:
    out = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    for seed, (name, kind) in enumerate([("tenant-1", "csr"), ("tenant-7", "lowrank")]):
        write_stream(
            out / STREAM_FOLDER / name,
            name=name,
            base_id=BaseStream.open(out).id,
            public=False,
            method="tune",
            guarantee="exact",
            layers=make_layers(kind, seed).items(),
        )
    assert run(["inspect", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    told = {name: stream["memory_bytes"] for name, stream in found["streams"].items()}
    measured = memory(load(out, ["tenant-1", "tenant-7"]))
    assert told == {name: measured[name] for name in ("tenant-1", "tenant-7")}
    assert "model.norm.weight" in found["kept"]
    assert run(["inspect", str(out)]) == 0
    assert f"{told['tenant-7']:,} in memory" in " ".join(capsys.readouterr().out.split())


def test_a_rebuild_from_the_public_checkpoint_is_identical(
    base: Path, tiny_checkpoint: Path, capsys
) -> None:
    assert run(["verify", str(base), "--rebuild", str(tiny_checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rebuilt"] == "identical"


def test_verify_notices_a_changed_byte(base: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    shard = next(copy.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert run(["verify", str(copy), "--json"]) == 1
    assert shard.name in " ".join(json.loads(capsys.readouterr().out)["problems"])


def test_generate_prints_the_completion_alone(base: Path, capsys) -> None:
    assert run(["generate", str(base), "The ", "--max-new-tokens", "4"]) == 0
    shown = capsys.readouterr().out
    assert run(["generate", str(base), "The ", "--max-new-tokens", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert shown == found["completion"] + "\n"
    assert len(found["tokens"]) <= 4


def test_opening_a_stream_that_is_not_there_is_an_error(base: Path, capsys) -> None:
    assert run(["generate", str(base), "x", "--ortho-alpha", "1"]) == ERROR
    assert "no stream is attached" in capsys.readouterr().err


def test_plans_do_nothing(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run(["quantize", str(tiny_checkpoint), "-o", str(out), "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 14
    assert not out.exists()


def test_the_plan_of_a_stream_that_exists_says_so(tiny_base, tmp_path, capsys) -> None:
    (tmp_path / "ortho/private").mkdir(parents=True)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    command = ["tune", str(tiny_base), "--data", str(data), "-o", str(tmp_path), "--plan"]
    assert run(command) == ERROR
    assert "private: already there" in capsys.readouterr().err


def test_split_names_the_flags_of_another_method(tiny_checkpoint, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    command = ["split", str(tiny_checkpoint), "-o", str(out), "--method", "curvature"]
    assert run([*command, "--lr", "0.1", "--sparse"]) == ERROR
    assert "has no --lr, --sparse" in capsys.readouterr().err
    assert not out.exists()


def test_split_by_curvature_speaks_json(tiny_checkpoint, tmp_path, capsys) -> None:
    flags = ["--tokens", "128", "--rounding", "mse", "--rho", "0.9", "--json"]
    command = ["split", str(tiny_checkpoint), "-o", str(tmp_path / "out"), "--method", "curvature"]
    assert run([*command, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["guarantee"] == "measured"
    assert found["recall"] is None
