"""Texts: documents, hashes and windows."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import pytest

from libortho.errors import ConfigError, FormatError
from libortho.texts import (
    Text,
    arithmetic,
    calibration,
    pydoc_topics,
    read_text,
    replay,
    windows,
)


def test_documents_are_split_at_separator_lines_only(tmp_path: Path) -> None:
    content = "one\n\nstill <|endoftext|> one\n<|endoftext|>\n \n<|endoftext|>\ntwo\n"
    path = tmp_path / "text.txt"
    path.write_text(content)
    text = read_text(path)
    assert text.documents == ("one\n\nstill <|endoftext|> one", "two\n")
    assert text.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert text.name == "text.txt"


def test_compressed_text_reads_the_same(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.xz"
    plain.write_text("é\n<|endoftext|>\nb")
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    assert read_text(packed).documents == read_text(plain).documents
    assert read_text(packed).sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()


@pytest.mark.parametrize(("name", "data"), [("a.xz", b"no"), ("a.txt", b"\xff"), ("b.txt", b"\n")])
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(FormatError, match=name):
        read_text(path)


def test_pydoc_is_there_on_every_machine() -> None:
    text = pydoc_topics()
    assert text == pydoc_topics()
    assert sum(map(len, text.documents)) > 300_000
    joined = "\n".join(text.documents).encode()
    assert text.sha256 == hashlib.sha256(joined).hexdigest()


def test_each_document_begins_with_the_leading_token(tiny_tokenizer) -> None:
    text = Text("t", "", ("The first", "A second one", "and"))
    ids = [i for d in text.documents for i in tiny_tokenizer(d)["input_ids"]]
    assert ids.count(tiny_tokenizer.bos_token_id) == 3
    cut = windows(text, tiny_tokenizer, 4)
    assert cut.flatten().tolist() == ids[: len(ids) // 4 * 4]


def test_tokens_are_rounded_up_to_a_window(tiny_tokenizer) -> None:
    text = pydoc_topics()
    cut = windows(text, tiny_tokenizer, 64, 1000)
    assert cut.shape == (16, 64)
    assert windows(text, tiny_tokenizer, 64, 1024).equal(cut)
    assert windows(text, tiny_tokenizer, 64)[:16].equal(cut)


def test_a_text_that_is_too_short_is_an_error(tiny_tokenizer) -> None:
    text = Text("short", "", ("a few words",))
    with pytest.raises(ConfigError, match="short holds"):
        windows(text, tiny_tokenizer, 4, 4000)
    with pytest.raises(ConfigError, match="short holds"):
        windows(text, tiny_tokenizer, 512)


def test_replay_is_the_calibration_text_and_arithmetic() -> None:
    text = replay()
    assert text.documents == calibration().documents + arithmetic().documents
    assert text.sha256 not in (calibration().sha256, arithmetic().sha256)
    assert text.name == "calibration+arithmetic"
