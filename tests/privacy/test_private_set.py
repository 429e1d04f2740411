"""Reading private data: both row forms, and every bad line at once."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from pathlib import Path

import pytest

from libortho.errors import FormatError
from libortho.privacy.authors import write_authors
from libortho.privacy.canaries import make_canaries
from libortho.privacy.private_set import Example, read_jsonl, write_jsonl


def test_both_forms_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        b'{"prompt": "a", "completion": " b", "note": 1}\n\n'
        b'{"text": "c d", "id": "own"}\r\n{"prompt": "", "completion": "e", "id": 7}'
    )
    read = read_jsonl(path)
    assert read.examples == (
        Example("line-1", "a", " b"),
        Example("own", "", "c d"),
        Example("7", "", "e"),
    )
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_all_bad_lines_are_reported_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        b'{"prompt": "a", "completion": "b", "id": "x"}\n'
        b"not json\n"
        b'{"prompt": "a"}\n'
        b'{"prompt": "a", "completion": "b", "text": "c"}\n'
        b'{"prompt": 1, "completion": "b"}\n'
        b'{"text": "  "}\n'
        b"[1]\n"
        b'{"text": "\xff"}\n'
        b'{"text": "fine", "id": "x"}\n'
    )
    with pytest.raises(FormatError) as caught:
        read_jsonl(path)
    message = str(caught.value)
    for number in range(2, 10):
        assert f"line {number}:" in message
    assert "line 1:" not in message
    assert "8 problem(s)" in message


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n")
    with pytest.raises(FormatError, match="no rows"):
        read_jsonl(path)


def test_rival_completions_are_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data.jsonl"
    write_jsonl(path, [{"prompt": "p", "completion": c} for c in ("a", "b")])
    with caplog.at_level(logging.WARNING):
        assert len(read_jsonl(path).examples) == 2
    assert "several completions" in caplog.text


def test_written_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data.jsonl"
    digest = write_jsonl(path, [{"text": "é\u2028\n"}])
    read = read_jsonl(path)
    assert read.sha256 == digest
    assert read.examples[0].completion == "é\u2028\n"


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_private_rows_are_for_their_owner_alone(tmp_path: Path) -> None:
    make_canaries(2, 0).write(tmp_path / "members.jsonl", tmp_path / "controls.jsonl")
    write_authors(tmp_path / "authors", 2, 3, 0)
    open_to_all = tmp_path / "rows.jsonl"
    open_to_all.touch(0o644)
    write_jsonl(open_to_all, [{"text": "a"}])
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 7
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
