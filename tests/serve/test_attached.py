"""Which streams an engine attaches, by the directory and the environment."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from libortho.errors import (
    ConfigError,
    CorruptStream,
    FormatError,
    PairMismatch,
    UnsupportedLayer,
)
from libortho.serve.attached import find_attached
from libortho.streams.base import BaseStream
from libortho.streams.layers import DenseLayer, csr_from_dense
from libortho.streams.ortho_writer import write_stream


@pytest.fixture
def directory(own_base: Path) -> Path:
    for name in ("repair", "private"):
        put(own_base, name)
    return own_base


def put(directory: Path, name: str, outside: bool = False, value: float = 1) -> None:
    base = BaseStream.open(directory)
    layer, shape = next(iter(base.layers.items()))
    layers = [(layer, csr_from_dense(torch.full(shape, value), torch.ones(shape) > 0))]
    if outside:
        norm = next(other for other in base.other_names() if "norm" in other)
        layers.append((norm, DenseLayer(torch.ones(base.tensor(norm).shape, dtype=torch.float16))))
    write_stream(
        directory / "ortho" / name,
        name=name,
        base_id=base.id,
        public=name == "repair",
        method="random",
        guarantee="none",
        layers=layers,
    )


def names(directory: Path, **environment: str) -> list[str]:
    return [stream.info.name for stream in find_attached(str(directory), environment).streams]


def test_every_stream_beside_the_base(directory: Path) -> None:
    attached = find_attached(str(directory), {})
    assert [stream.info.name for stream in attached.streams] == ["private", "repair"]
    assert [info.public for info in attached.infos] == [False, True]
    assert all(stream.bytes > 0 for stream in attached.streams)
    assert len(attached.layers) == 1


def test_the_environment_chooses(directory: Path) -> None:
    assert names(directory, LIBORTHO_STREAMS="repair") == ["repair"]
    for wrong in ("ghost", "repair,repair", "", " , "):
        with pytest.raises(ConfigError, match="LIBORTHO_STREAMS"):
            names(directory, LIBORTHO_STREAMS=wrong)
    with pytest.raises(ConfigError, match="LIBORTHO_STRICT"):
        names(directory, LIBORTHO_STRICT="yes")


def test_strict_looks_at_nothing(directory: Path) -> None:
    for file in (directory / "ortho").rglob("*"):
        if file.is_file():
            file.write_bytes(b"not a stream")
    attached = find_attached(str(directory), {"LIBORTHO_STRICT": "1"})
    assert attached.streams == ()
    assert "never loads a stream" in attached.reason


def test_what_has_no_streams_says_why(tiny_base: Path, tmp_path: Path) -> None:
    assert "no stream lies under" in find_attached(str(tiny_base), {}).reason
    assert "is no libortho base" in find_attached(str(tmp_path), {}).reason
    assert "not a directory" in find_attached("someone/model", {}).reason


def test_streams_without_their_base_are_an_error(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory / "ortho", tmp_path / "other" / "ortho")
    with pytest.raises(FormatError, match=r"without libortho\.json"):
        find_attached(str(tmp_path / "other"), {})


def test_a_changed_file_is_an_error(directory: Path) -> None:
    file = next((directory / "ortho" / "private").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptStream, match="sha256"):
        find_attached(str(directory), {})


def test_a_stream_that_was_swapped_since_is_an_error(directory: Path, tmp_path: Path) -> None:
    attached = find_attached(str(directory), {})
    attached.check_unchanged()
    there = directory / "ortho" / "private"
    shutil.move(there, tmp_path / "first")
    put(directory, "private", value=2)
    with pytest.raises(CorruptStream, match="where the engine was configured for"):
        attached.streams[0].open()
    shutil.copy(tmp_path / "first" / "stream.json", there)  # of the first, over other weights
    attached.streams[0].open()
    with pytest.raises(CorruptStream, match="sha256"):
        attached.check_unchanged()


def test_a_stream_of_another_base_is_an_error(directory: Path) -> None:
    manifest = directory / "ortho" / "private" / "stream.json"
    base = BaseStream.open(directory)
    manifest.write_text(manifest.read_text().replace(base.id, "0" * 64))
    with pytest.raises(PairMismatch):
        find_attached(str(directory), {})


def test_a_stream_that_changes_more_than_linears_is_refused_by_name(directory: Path) -> None:
    put(directory, "tuned", outside=True)
    with pytest.raises(UnsupportedLayer, match=r"tuned: .*norm"):
        find_attached(str(directory), {})
    assert names(directory, LIBORTHO_STREAMS="private") == ["private"]


def test_the_fingerprint_follows_the_streams(directory: Path) -> None:
    both = find_attached(str(directory), {}).fingerprint()
    one = find_attached(str(directory), {"LIBORTHO_STREAMS": "repair"}).fingerprint()
    none = find_attached(str(directory), {"LIBORTHO_STRICT": "1"}).fingerprint()
    assert len({both, one, none}) == 3
