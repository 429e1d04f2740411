"""Streams made by somebody who means harm, or by a disk that failed: every one is refused."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from libortho.errors import CorruptStream, FormatError
from libortho.layout import tile_csr
from libortho.streams.layers import CsrLayer, DenseLayer
from libortho.streams.ortho import MANIFEST, OrthoStream
from libortho.streams.ortho_writer import write_stream

SHAPE = (4, 8)
LAYER = "model.layers.0.mlp.up_proj"


def write(directory: Path, layers) -> OrthoStream:
    return write_stream(
        directory,
        name="private",
        base_id="ab" * 32,
        public=False,
        method="test",
        guarantee="none",
        layers=layers.items(),
    )


@pytest.fixture
def stream(tmp_path: Path, make_layer) -> OrthoStream:
    layers = {LAYER: make_layer(SHAPE, density=0.4), "other": make_layer(SHAPE, "lowrank")}
    return write(tmp_path / "private", layers)


def overwrite(stream: OrthoStream, **tensors: torch.Tensor | None) -> OrthoStream:
    """Replace tensors of LAYER in the file (None removes one) and open what is there then."""
    (name,) = stream.manifest.files
    stored = load_file(stream.path / name)
    for part, tensor in tensors.items():
        stored.pop(f"{LAYER}.{part}")
        if tensor is not None:
            stored[f"{LAYER}.{part}"] = tensor
    save_file(stored, stream.path / name)
    return OrthoStream.open(stream.path)


def rewrite(stream: OrthoStream, **changes) -> None:
    manifest = json.loads((stream.path / MANIFEST).read_text())
    (stream.path / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def ints(*values: int, dtype=torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


GOOD = {"indptr": ints(0, 2, 2, 3, 5), "indices": ints(1, 7, 0, 2, 3), "values": torch.ones(5)}
HOSTILE = {
    "unsorted": {"indices": ints(7, 1, 0, 2, 3)},
    "duplicate": {"indices": ints(1, 1, 0, 2, 3)},
    "out of range": {"indices": ints(1, 8, 0, 2, 3)},
    "far out of range": {"indices": ints(1, 2**31 - 1, 0, 2, 3)},
    "negative": {"indices": ints(-1, 7, 0, 2, 3)},
    "indptr decreasing": {"indptr": ints(0, 3, 2, 3, 5)},
    "indptr beyond the end": {"indptr": ints(0, 9, 2, 3, 5)},
    "indptr begins late": {"indptr": ints(1, 2, 2, 3, 5)},
    "indptr ends early": {"indptr": ints(0, 2, 2, 3, 4)},
    "indptr ends late": {"indptr": ints(0, 2, 2, 3, 6)},
    "indptr negative": {"indptr": ints(0, -2, 2, 3, 5)},
    "indptr short": {"indptr": ints(0, 2, 2, 5)},
    "indptr long": {"indptr": ints(0, 2, 2, 3, 5, 5)},
    "indptr empty": {"indptr": ints()},
    "indptr a matrix": {"indptr": ints(0, 2, 2, 3, 5)[None]},
    "indptr int64": {"indptr": GOOD["indptr"].long()},
    "indptr float": {"indptr": GOOD["indptr"].float()},
    "indices short": {"indices": ints(1, 7, 0, 2)},
    "indices int64": {"indices": GOOD["indices"].long()},
    "indices int16": {"indices": GOOD["indices"].short()},
    "indices a matrix": {"indices": GOOD["indices"][None], "values": torch.ones(1, 5).half()},
    "indices scalar": {"indices": torch.tensor(1, dtype=torch.int32)},
    "values short": {"values": torch.ones(4).half()},
    "values float32": {"values": torch.ones(5)},
    "values bfloat16": {"values": torch.ones(5).bfloat16()},
    "values int": {"values": torch.ones(5).short()},
    "values bool": {"values": torch.ones(5).bool()},
    "all of another count": {
        "indptr": ints(0, 1, 1, 1, 1),
        "indices": ints(0),
        "values": torch.ones(1).half(),
    },
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_broken_csr_is_refused_by_the_name_of_its_layer(stream, change) -> None:
    good = {**GOOD, "values": GOOD["values"].half()}
    sound = write(stream.path.parent / "sound", {LAYER: CsrLayer(**good, shape=SHAPE)})
    assert sound.verify() == []
    opened = overwrite(sound, **{part: t.clone() for part, t in {**good, **change}.items()})
    with pytest.raises(CorruptStream, match=f"layer {LAYER}: "):
        opened.layer(LAYER)
    assert any(f"layer {LAYER}: " in problem for problem in opened.verify())
    with pytest.raises(CorruptStream, match="sha256"):
        opened.check_files()


SMALL = st.integers(-2, 10)
DTYPES = st.sampled_from([torch.int32, torch.int32, torch.int32, torch.int64, torch.int16])


@given(
    indptr=st.lists(SMALL, max_size=7),
    indices=st.lists(SMALL, max_size=7),
    count=st.integers(0, 7),
    dtypes=st.tuples(DTYPES, DTYPES),
)
@settings(max_examples=200, deadline=None)
def test_whatever_passes_is_a_matrix(indptr, indices, count, dtypes) -> None:
    """Either the rules are broken and named, or every later step can rely on them."""
    layer = CsrLayer(
        ints(*indptr, dtype=dtypes[0]), ints(*indices, dtype=dtypes[1]), torch.ones(count), SHAPE
    )
    if layer.problems():
        assert not is_csr(indptr, indices, count) or dtypes != (torch.int32, torch.int32)
        return
    assert is_csr(indptr, indices, count)
    assert int(layer.dense().sum()) == count
    tile_csr(layer.indptr, layer.indices, SHAPE)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_one_change_to_a_sound_matrix_is_found(data) -> None:
    cells = data.draw(st.lists(st.booleans(), min_size=32, max_size=32))
    mask = torch.tensor(cells).reshape(SHAPE)
    indptr = [0, *mask.sum(1).cumsum(0).tolist()]
    indices = mask.nonzero()[:, 1].tolist()
    part = data.draw(st.sampled_from([indptr, indices]))
    assume(part)
    place = data.draw(st.integers(0, len(part) - 1))
    part[place] = data.draw(st.integers(-(2**31), 2**31 - 1).filter(lambda v: v != part[place]))
    layer = CsrLayer(ints(*indptr), ints(*indices), torch.ones(int(mask.sum())), SHAPE)
    assert bool(layer.problems()) != is_csr(indptr, indices, layer.nnz)


def is_csr(indptr: list[int], indices: list[int], count: int) -> bool:
    """The rules in plain words: the reference for what is accepted."""
    if len(indptr) != SHAPE[0] + 1 or indptr[0] != 0 or sorted(indptr) != indptr:
        return False
    if not indptr[-1] == len(indices) == count:
        return False
    rows = [indices[start:end] for start, end in itertools.pairwise(indptr)]
    return all(row == sorted(set(row)) and all(0 <= c < SHAPE[1] for c in row) for row in rows)


def test_factors_that_do_not_fit_are_refused(tmp_path: Path, make_layer) -> None:
    sound = make_layer(SHAPE, "lowrank")
    changes = {
        "b of another rank": {"b": torch.ones(4, 3)},
        "a is a vector": {"a": torch.ones(8)},
        "a has more columns": {"a": torch.ones(4, 9)},
        "b has fewer rows": {"b": torch.ones(3, 4)},
        "integers": {"a": torch.ones(4, 8).int(), "b": torch.ones(4, 4).int()},
        "two dtypes": {"a": torch.ones(4, 8).half()},
        "another rank": {"a": torch.ones(2, 8), "b": torch.ones(4, 2)},
    }
    for place, change in enumerate(changes.values()):
        stream = write(tmp_path / f"s{place}", {LAYER: sound})
        opened = overwrite(stream, **change)
        with pytest.raises(CorruptStream, match=f"layer {LAYER}: "):
            opened.layer(LAYER)


def test_differences_of_another_dtype_are_refused(tmp_path: Path) -> None:
    stream = write(tmp_path / "private", {LAYER: DenseLayer(torch.ones(4, 8).half())})
    with pytest.raises(CorruptStream, match="float32, expected float16"):
        overwrite(stream, delta=torch.ones(4, 8)).layer(LAYER)
    with pytest.raises(CorruptStream, match="64 values for shape"):
        overwrite(stream, delta=torch.ones(8, 8).half()).layer(LAYER)
    with pytest.raises(CorruptStream, match="expected fp16"):
        write(tmp_path / "whole", {LAYER: DenseLayer(torch.ones(4, 8, dtype=torch.int8))})


@pytest.mark.parametrize("part", ["indptr", "indices", "values"])
def test_a_missing_tensor_is_named(stream: OrthoStream, part: str) -> None:
    with pytest.raises(CorruptStream, match=f"tensors missing: {LAYER}.{part}; copy"):
        overwrite(stream, **{part: None})


def test_a_file_that_is_missing_cut_or_not_safetensors(stream: OrthoStream) -> None:
    (name,) = stream.manifest.files
    whole = (stream.path / name).read_bytes()
    for data in (None, b"", whole[: len(whole) // 2], b"\xff" * len(whole)):
        (stream.path / name).unlink(missing_ok=True)
        if data is not None:
            (stream.path / name).write_bytes(data)
        with pytest.raises(CorruptStream, match=f"{name}: .*copy the stream again"):
            OrthoStream.open(stream.path)


def test_a_bit_that_fell_over_is_found(stream: OrthoStream) -> None:
    (name,) = stream.manifest.files
    data = bytearray((stream.path / name).read_bytes())
    data[-1] ^= 1
    (stream.path / name).write_bytes(data)
    with pytest.raises(CorruptStream, match=rf"{name}: sha256 .*stream\.json says"):
        OrthoStream.open(stream.path).check_files()
    assert len(OrthoStream.open(stream.path).verify()) == 1


def test_files_of_another_stream_are_found(stream: OrthoStream, make_layer) -> None:
    other = write(stream.path.parent / "other", {LAYER: make_layer(SHAPE, seed=5, density=0.9)})
    (name,) = stream.manifest.files
    shutil.copy(other.path / name, stream.path / name)
    with pytest.raises(CorruptStream, match=r"tensors missing: other\.a, other\.b"):
        OrthoStream.open(stream.path)
    rewrite(stream, layers={LAYER: json.loads(stream.manifest.layers[LAYER].model_dump_json())})
    opened = OrthoStream.open(stream.path)
    with pytest.raises(CorruptStream, match=f"layer {LAYER}: .*the manifest says"):
        opened.layer(LAYER)
    with pytest.raises(CorruptStream, match="sha256"):
        opened.check_files()


def test_a_manifest_of_another_stream_is_found(stream: OrthoStream) -> None:
    rewrite(stream, id="0" * 64)
    with pytest.raises(CorruptStream, match="the id does not follow"):
        OrthoStream.open(stream.path).check_files()


def test_values_that_are_not_finite_are_found(stream: OrthoStream) -> None:
    layer = stream.layer(LAYER)
    for value in (math.nan, math.inf):
        opened = overwrite(stream, values=torch.full_like(layer.values, value))
        assert any(f"layer {LAYER}: values are not finite" in p for p in opened.verify())


def test_files_beside_the_stream_are_reported(stream: OrthoStream) -> None:
    (stream.path / "notes.txt").write_text("x")
    assert stream.verify() == [f"{stream.path / 'notes.txt'}: not listed in {MANIFEST}"]


@pytest.mark.parametrize(
    "file",
    [
        "../private/ortho-00001-of-00001.safetensors",
        "/etc/passwd",
        "model.safetensors",
        "ortho-1-of-1.safetensors/..",
    ],
)
def test_a_manifest_cannot_point_elsewhere(stream: OrthoStream, file: str) -> None:
    rewrite(stream, files={file: "0" * 64})
    with pytest.raises(FormatError, match="not file names of a stream"):
        OrthoStream.open(stream.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2, this libortho reads 1"),
        ({"surprise": 1}, "surprise"),
        ({"guarantee": "absolute"}, "guarantee"),
        ({"layers": {LAYER: {"kind": "dense", "shape": [4, 8]}}}, "kind"),
        ({"public": None}, "public"),
    ],
)
def test_manifests_of_another_kind_are_refused(stream, changes, message: str) -> None:
    rewrite(stream, **changes)
    with pytest.raises(FormatError, match=message):
        OrthoStream.open(stream.path)


def test_a_directory_that_is_no_stream(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no stream\.json; expected a stream directory"):
        OrthoStream.open(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(FormatError, match=MANIFEST):
        OrthoStream.open(tmp_path)
