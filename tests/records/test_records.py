"""Records: what they keep, what they refuse, and that their hash is that of their file."""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from libortho import records
from libortho.errors import FormatError, NumericsError
from libortho.records import Method, RawFile, Record


def make(**changes: object) -> Record:
    fields: dict[str, object] = {
        "n": 2,
        "seeds": [1],
        "backend": "reference",
        "figures": {"recall_alpha1": 1.0, "members": 2},
        "methods": {"tune": {"ppl_fp": 21.5, "raw": {"nll": {"alpha0": {"members": [1.5, 2.0]}}}}},
    }
    return records.new("demo", "PASS", **{**fields, **changes})  # type: ignore[arg-type]


def test_round_trip_and_hash_of_the_file(tmp_path: Path) -> None:
    record = make()
    path = tmp_path / "deep" / "demo.json"
    digest = records.write(record, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    again = records.read(path)
    assert again == record
    assert again.sha256() == digest
    assert again.source == path


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    records.write(make(), path)
    before = path.read_bytes()
    with pytest.raises(NumericsError):
        records.write(make(figures={"ppl_fp": float("nan")}), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["demo.json"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_file_is_as_open_as_the_umask_lets_it_be(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        records.write(make(), tmp_path / "demo.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "demo.json").stat().st_mode) == 0o640


def test_every_number_that_is_not_finite_is_named() -> None:
    record = make(
        figures={"ppl_fp": float("inf")},
        methods={"tune": {"raw": {"nll": {"fp": {"members": [1.0, float("nan")]}}}}},
    )
    with pytest.raises(NumericsError) as caught:
        record.to_json()
    assert "figures.ppl_fp = inf" in str(caught.value)
    assert "methods.tune.raw.nll.fp.members[1] = nan" in str(caught.value)


def test_arrays_stand_on_one_line_and_strings_are_untouched() -> None:
    text = make(figures={"note": "keep [ 1,  2 ]\n[ 3 ]"}).to_json()
    assert '"members": [ 1.5, 2.0 ]' in text
    assert json.loads(text)["figures"]["note"] == "keep [ 1,  2 ]\n[ 3 ]"
    assert list(json.loads(text))[:3] == ["format_version", "experiment", "verdict"]


def test_summary_is_flat_and_without_raw_scores() -> None:
    assert make().summary() == {
        "verdict": "PASS",
        "recall_alpha1": 1.0,
        "members": 2,
        "methods": {"tune": {"ppl_fp": 21.5}},
    }


def test_faults_of_a_file_are_all_listed(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    data = json.loads(make().to_json())
    data["verdict"] = "GREAT"
    data["seeds"] = []
    data["surprise"] = 1
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError) as caught:
        records.read(path)
    for name in ("verdict", "seeds", "surprise", str(path)):
        assert name in str(caught.value)
    with pytest.raises(FormatError, match="cannot read"):
        records.read(tmp_path / "absent.json")


def test_values_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(ValidationError):
        make(figures={"tensor": object()})
    with pytest.raises(ValidationError):
        make(methods={"tune": {"tensor": object()}})


def test_raw_scores_in_a_file_are_checked_by_hash(tmp_path: Path) -> None:
    content = b'{"nll": {}}'
    (tmp_path / "raw.json").write_bytes(content)
    outside = RawFile(path="raw.json", sha256=hashlib.sha256(content).hexdigest())
    record = make(methods={"tune": {"raw": outside.model_dump()}})
    assert record.methods["tune"].raw == outside
    with pytest.raises(FormatError, match="has no file"):
        records.load_raw(record, outside)
    records.write(record, tmp_path / "demo.json")
    again = records.read(tmp_path / "demo.json")
    assert records.load_raw(again, again.methods["tune"].raw) == {"nll": {}}
    (tmp_path / "raw.json").write_bytes(b'{"nll": {"altered": 1}}')
    with pytest.raises(FormatError, match="sha256"):
        records.load_raw(again, again.methods["tune"].raw)
    assert records.load_raw(again, None) == {}
    assert Method.model_validate({"a": 1}).figures == {"a": 1}


def test_the_environment_says_what_ran_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/libortho", "demo", "--out", "a b"])
    found = records.collect_environment()
    assert found.command == "libortho demo --out 'a b'"
    assert found.commit
    assert found.hardware.cores >= 1
    assert found.versions["torch"]
    assert found.created.utcoffset() is not None


def test_a_module_is_told_as_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/site-packages/libortho/__main__.py", "demo"])
    spec = importlib.machinery.ModuleSpec("libortho.__main__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    assert records.collect_environment().command == "python -m libortho demo"


def test_an_installed_copy_claims_no_foreign_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "libortho"
    package.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "foreign"], check=True)
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    monkeypatch.setattr(records, "_versions", lambda: {"libortho": "1.2.3"})
    assert records.collect_environment().commit == "1.2.3"
