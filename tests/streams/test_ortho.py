"""Ortho streams on disk: what is written comes back, and nothing broken is believed."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from libortho.errors import (
    ConfigError,
    CorruptStream,
    NumericsError,
    PairMismatch,
)
from libortho.streams import ortho, ortho_writer
from libortho.streams.layers import CsrLayer, DenseLayer, LowRankLayer, csr_from_dense, csr_support
from libortho.streams.ortho import OrthoStream, check_name
from libortho.streams.ortho_writer import write_stream

BASE_ID = "ab" * 32
# Every example writes into a directory of its own.
SHARED = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def write(directory: Path, layers, **options) -> OrthoStream:
    values = {
        "name": "private",
        "base_id": BASE_ID,
        "public": False,
        "method": "test",
        "guarantee": "none",
        **options,
    }
    return write_stream(directory, layers=layers.items(), **values)


def same(one, other) -> bool:
    parts = {CsrLayer: ("indptr", "indices", "values"), LowRankLayer: ("a", "b")}.get(
        type(one), ("delta",)
    )
    return (
        type(one) is type(other)
        and one.shape == other.shape
        and all(same_bits(getattr(one, part), getattr(other, part)) for part in parts)
        and getattr(one, "scaling", None) == getattr(other, "scaling", None)
    )


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.numpy().tobytes() == other.numpy().tobytes()
    )


FINITE = st.floats(-60000, 60000, width=16)


@st.composite
def csr_layers(draw) -> CsrLayer:
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 9)))
    mask = torch.from_numpy(draw(hnp.arrays(np.bool_, shape)))
    values = draw(hnp.arrays(np.float16, int(mask.sum()), elements=FINITE))
    return CsrLayer(*csr_support(mask), torch.from_numpy(values), shape)


@st.composite
def lowrank_layers(draw) -> LowRankLayer:
    rows, rank, columns = (draw(st.integers(1, 5)) for _ in range(3))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    a = draw(hnp.arrays(dtype, (rank, columns), elements=FINITE))
    b = draw(hnp.arrays(dtype, (rows, rank), elements=FINITE))
    return LowRankLayer(torch.from_numpy(a), torch.from_numpy(b), draw(st.floats(-4, 4)))


@st.composite
def dense_layers(draw) -> DenseLayer:
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    return DenseLayer(torch.from_numpy(draw(hnp.arrays(np.float16, shape, elements=FINITE))))


LAYERS = csr_layers() | lowrank_layers() | dense_layers()
NAMES = st.from_regex(r"[a-z]{1,5}(\.[a-z0-9_]{1,6}){0,3}", fullmatch=True)


@given(layers=st.dictionaries(NAMES, LAYERS, max_size=4))
@SHARED
def test_layers_come_back_bit_for_bit(tmp_path_factory, layers) -> None:
    directory = tmp_path_factory.mktemp("stream") / "private"
    written = write(directory, layers)
    read = OrthoStream.open(directory)
    assert list(read.manifest.layers) == list(layers)
    assert all(same(read.layer(name), layer) for name, layer in layers.items())
    assert read.verify() == []
    read.check_files()
    assert read.id == written.id
    stored = sum(layer.nnz for layer in layers.values())
    weights = sum(math.prod(layer.shape) for layer in layers.values())
    assert read.manifest.density == (stored / weights if weights else 0)


@given(layer=csr_layers())
@settings(deadline=None, max_examples=50)
def test_csr_and_dense_agree(layer: CsrLayer) -> None:
    dense = layer.dense()
    mask = torch.zeros(layer.shape, dtype=torch.bool)
    mask[layer.rows(), layer.indices.long()] = True
    assert same(csr_from_dense(dense, mask), layer)
    assert int(mask.sum()) == layer.nnz
    assert layer.problems() == []


def test_the_id_is_that_of_bytes_and_base(tmp_path: Path, make_layer) -> None:
    layers = {"a": make_layer((4, 8), seed=1, density=0.5)}
    one = write(tmp_path / "one", layers)
    again = write(tmp_path / "again", layers, method="other")
    assert one.id == again.id
    assert write(tmp_path / "base", layers, base_id="cd" * 32).id != one.id
    other = {"a": make_layer((4, 8), seed=2, density=0.5)}
    assert write(tmp_path / "other", other).id != one.id


def test_the_id_is_that_of_the_scaling_too(tmp_path: Path) -> None:
    """Two streams of the same factors that act differently share no cache."""
    a, b = torch.ones(2, 8), torch.ones(4, 2)
    one = write(tmp_path / "one", {"a": LowRankLayer(a, b, 1.0)})
    two = write(tmp_path / "two", {"a": LowRankLayer(a, b, 2.0)})
    assert one.manifest.files == two.manifest.files
    assert one.id != two.id
    manifest = one.path / "stream.json"
    manifest.write_text(manifest.read_text().replace('"scaling": 1.0', '"scaling": 2.0'))
    changed = OrthoStream.open(one.path)
    assert any("the id does not follow" in problem for problem in changed.verify())
    with pytest.raises(CorruptStream, match="the id does not follow"):
        changed.check_files()


def test_a_stream_in_the_folder_of_another_is_refused(tmp_path: Path, make_layer) -> None:
    """Folders choose streams and names open them: two tenants must not share a name."""
    stream = write(tmp_path / "ortho" / "private", {"a": make_layer((4, 8))})
    tenant = stream.path.rename(tmp_path / "ortho" / "tenant")
    with pytest.raises(ConfigError, match="called 'private', not 'tenant'"):
        OrthoStream.open(tenant)
    with pytest.raises(ConfigError, match="called 'private', not 'other'"):
        write(tmp_path / "ortho" / "other", {"a": make_layer((4, 8))})
    assert not (tmp_path / "ortho" / "other").exists()
    elsewhere = tenant.rename(tmp_path / "mine")
    assert OrthoStream.open(elsewhere).name == "private"


def test_the_files_are_these(tmp_path: Path, make_layer) -> None:
    """The format: whoever changes a key or a name changes the version, too."""
    stream = write(
        tmp_path / "private",
        {
            "model.layers.0.mlp.up_proj": make_layer((4, 8), density=0.5),
            "model.layers.0.mlp.down_proj": make_layer((8, 4), "lowrank"),
            "model.norm.weight": DenseLayer(torch.ones(8).half()),
        },
        requires=["b", "a"],
        made_with={"seed": 1},
    )
    assert sorted(file.name for file in stream.path.iterdir()) == [
        "ortho-00001-of-00001.safetensors",
        "stream.json",
    ]
    tensors = load_file(stream.path / "ortho-00001-of-00001.safetensors")
    up, down = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
    assert {name: (tensor.dtype, tensor.dim()) for name, tensor in tensors.items()} == {
        f"{up}.indptr": (torch.int32, 1),
        f"{up}.indices": (torch.int32, 1),
        f"{up}.values": (torch.float16, 1),
        f"{down}.a": (torch.float32, 2),
        f"{down}.b": (torch.float32, 2),
        "model.norm.weight.delta": (torch.float16, 1),
    }
    manifest = json.loads((stream.path / "stream.json").read_text("utf-8"))
    nnz = tensors[f"{up}.values"].numel()
    assert manifest == {
        "format_version": 1,
        "name": "private",
        "id": stream.id,
        "base_id": BASE_ID,
        "public": False,
        "method": "test",
        "guarantee": "none",
        "requires": ["a", "b"],
        "density": (nnz + 48 + 8) / (64 + 8),
        "layers": {
            up: {"kind": "csr", "shape": [4, 8], "nnz": nnz, "rank": 0, "scaling": 1.0},
            down: {"kind": "lowrank", "shape": [8, 4], "nnz": 48, "rank": 4, "scaling": 0.02},
            "model.norm.weight": {
                "kind": "dense",
                "shape": [8],
                "nnz": 8,
                "rank": 0,
                "scaling": 1.0,
            },
        },
        "files": {"ortho-00001-of-00001.safetensors": manifest["files"][stream_file(stream)]},
        "made_with": {"seed": 1},
    }
    assert stat.S_IMODE(stream.path.stat().st_mode) == 0o755


def stream_file(stream: OrthoStream) -> str:
    (file,) = stream.manifest.files
    return file


def test_the_id_is_computed_so() -> None:
    """Golden: ids name streams in other files, and must never change by accident."""
    files = {"ortho-00002-of-00002.safetensors": "2" * 64, "ortho-00001-of-00002.safetensors": "1"}
    layers = {
        "b": ortho.LayerEntry(kind="lowrank", shape=(4, 8), rank=2, nnz=24, scaling=0.5),
        "a": ortho.LayerEntry(kind="csr", shape=(4, 8), nnz=3),
    }
    expected = "bd6dda94bdbe37382643677d643180e18b463c89d195a3af7004a16fc41ad837"
    assert ortho.stream_id(BASE_ID, files, layers) == expected


def test_large_streams_are_written_in_shards(tmp_path, make_layer, monkeypatch) -> None:
    monkeypatch.setattr(ortho_writer, "SHARD_BYTES", 1000)
    layers = {f"layer{i}": make_layer((16, 32), seed=i, density=0.3) for i in range(5)}
    stream = write(tmp_path / "private", layers)
    assert len(stream.manifest.files) > 1
    count = len(stream.manifest.files)
    assert sorted(stream.manifest.files) == [
        f"ortho-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    ]
    assert all(same(stream.layer(name), layer) for name, layer in layers.items())
    assert stream.verify() == []


class Broken(Exception):
    pass


def failing(make_layer):
    yield "first", make_layer((4, 8))
    raise Broken


def corrupt(make_layer):
    yield "first", make_layer((4, 8))
    layer = make_layer((4, 8), density=0.9)
    yield "second", CsrLayer(layer.indptr, layer.indices.flip(0), layer.values, layer.shape)


def poisoned(make_layer):
    yield "first", make_layer((4, 8))
    layer = make_layer((4, 8), density=0.9)
    yield "second", CsrLayer(layer.indptr, layer.indices, layer.values.float() * 1e6, layer.shape)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (failing, Broken, None),
        (corrupt, CorruptStream, "layer second: columns of a row must rise strictly"),
        (poisoned, NumericsError, "layer second: values are not finite as they would be stored"),
    ],
)
@pytest.mark.parametrize("replace", [False, True])
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, make_layer, source, error, message: str | None, replace: bool
) -> None:
    directory = tmp_path / "ortho" / "private"
    if replace:
        write(directory, {"old": make_layer((4, 8))})
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(error, match=message):
        write_stream(
            directory,
            name="private",
            base_id=BASE_ID,
            public=False,
            method="test",
            guarantee="none",
            layers=source(make_layer),
            replace=replace,
        )
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    assert [entry.name for entry in directory.parent.iterdir()] == ["private"] * replace


def test_nothing_is_overwritten_unless_asked(tmp_path: Path, make_layer) -> None:
    directory = tmp_path / "private"
    first = write(directory, {"a": make_layer((4, 8), seed=1)})
    with pytest.raises(ConfigError, match="already there"):
        write(directory, {"a": make_layer((4, 8), seed=2)})
    assert OrthoStream.open(directory).id == first.id
    second = write(directory, {"b": make_layer((4, 8), seed=2)}, replace=True)
    assert OrthoStream.open(directory).id == second.id != first.id
    assert list(OrthoStream.open(directory).manifest.layers) == ["b"]


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "-x", "a b", "a.b", "ü", "x" * 65, "base"]
)
def test_names_that_are_no_plain_words_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="stream name"):
        check_name(name)
    with pytest.raises(ConfigError, match="stream name"):
        write(tmp_path / "x", {}, name=name)
    assert not list(tmp_path.iterdir())


def test_a_stream_belongs_to_one_base(tmp_path: Path, make_layer) -> None:
    stream = write(tmp_path / "private", {"a": make_layer((4, 8)), "b": make_layer((4, 8))})
    stream.check_pair(BASE_ID, {"a": (4, 8), "b": (4, 8), "c": (1, 1)})
    with pytest.raises(PairMismatch, match="belongs to base abababababab…, this base is 000000"):
        stream.check_pair("0" * 64, {"a": (4, 8), "b": (4, 8)})
    with pytest.raises(PairMismatch, match=r"a \(4, 8\), b \(4, 8\)"):
        stream.check_pair(BASE_ID, {"a": (8, 4)})
