"""The base directory: bytes that depend on public inputs alone, and every fault named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libortho.checkpoint import Checkpoint, linear_layers
from libortho.errors import CheckpointError, ConfigError, FormatError, NumericsError
from libortho.quantizers import absmax
from libortho.streams import base as reading
from libortho.streams import base_writer as room
from libortho.streams.base import BaseStream, dequantise
from libortho.streams.base_writer import QuantisedLayer, write_base
from libortho.streams.manifest import Quantiser, base_id

FIRST = "model.layers.0.self_attn.q_proj"


def rounded(checkpoint: Checkpoint, names: list[str], group_size: int) -> Iterator[QuantisedLayer]:
    for name in names:
        weight = checkpoint.tensor(f"{name}.weight").float()
        codes, scales = absmax(weight, group_size, scale_dtype=checkpoint.scale_dtype)
        yield QuantisedLayer(name, codes, scales, 0.1)


def write(
    out: Path,
    source: Path,
    *,
    group_size: int = 64,
    change: Callable[[QuantisedLayer], QuantisedLayer] = lambda layer: layer,
    drop: int = 0,
) -> BaseStream:
    checkpoint = Checkpoint(source)
    layers, skipped = linear_layers(checkpoint.skeleton(), group_size)
    names = list(layers)[: len(layers) - drop]
    return write_base(
        out,
        checkpoint,
        layers,
        map(change, rounded(checkpoint, names, group_size)),
        quantiser=Quantiser(
            method="absmax", bits=4, group_size=group_size, seed=0, versions={"torch": "0"}
        ),
        skipped=skipped,
    )


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


@settings(deadline=None, max_examples=30)
@given(data=st.data(), rows=st.integers(1, 5), words=st.integers(1, 8))
def test_packing_is_exact(data: st.DataObject, rows: int, words: int) -> None:
    flat = data.draw(st.lists(st.integers(-8, 7), min_size=rows * words * 8, max_size=None))
    codes = torch.tensor(flat[: rows * words * 8], dtype=torch.int8).view(rows, -1)
    packed = room.pack_to_int32(codes, 4)
    assert packed.shape == (rows, words)
    assert torch.equal(reading.unpack_from_int32(packed, 4, codes.shape), codes)
    # Lowest bits first, code + 8: the layout that other runtimes expect.
    nibbles = [(int(packed[0, 0]) >> 4 * i & 15) - 8 for i in range(8)]
    assert nibbles == codes[0, :8].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dequantising_is_exact(dtype: torch.dtype) -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(50, 8)
    scales = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = codes.double() * scales.double().repeat_interleave(32, 1)
    assert torch.equal(dequantise(codes, scales).double(), expected)


def test_reads_back_what_was_written(tmp_path: Path, tiny_checkpoint_bf16: Path) -> None:
    base = write(tmp_path / "base", tiny_checkpoint_bf16)
    public = Checkpoint(tiny_checkpoint_bf16)
    assert base.group_size == 64
    assert base.verify() == []
    for layer in rounded(public, list(base.layers), 64):
        assert torch.equal(base.codes(layer.name), layer.codes)
        assert torch.equal(base.scales(layer.name), layer.scales)
        assert torch.equal(base.weight(layer.name), dequantise(layer.codes, layer.scales))
        packed, scales = base.packed(layer.name)
        assert packed.shape == (layer.codes.shape[0], layer.codes.shape[1] // 8)
        assert scales.dtype == torch.bfloat16
    others = base.other_names()
    assert set(others) == set(public.names()) - {f"{name}.weight" for name in base.layers}
    for name in others:
        assert base.tensor(name).dtype == public.dtype(name)
        assert torch.equal(base.tensor(name), public.tensor(name))


def test_side_files_are_copied_byte_for_byte_and_nothing_else_is(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    public = Path(shutil.copytree(tiny_checkpoint, tmp_path / "public"))
    (public / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    (public / "secrets.jsonl").write_text('{"prompt": "the code is", "completion": "1234"}')
    (public / "training_args.bin").write_bytes(b"x")
    base = write(tmp_path / "base", public)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
    ):
        assert (base.path / name).read_bytes() == (public / name).read_bytes()
    assert {file.name for file in base.path.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "libortho.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_configuration_is_the_public_one_and_the_stock_quantisation(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    base = write(tmp_path / "base", tiny_checkpoint)
    config = json.loads((base.path / "config.json").read_text())
    quantisation = config.pop("quantization_config")
    assert config == json.loads((tiny_checkpoint / "config.json").read_text())
    assert quantisation["quant_method"] == "compressed-tensors"
    assert quantisation["format"] == "pack-quantized"
    assert quantisation["ignore"] == ["lm_head"]
    weights = quantisation["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["type"], weights["group_size"]) == (4, "int", 64)
    assert weights["symmetric"] is True
    assert quantisation["config_groups"]["group_0"]["input_activations"] is None


def test_the_same_bytes_twice_wherever_it_is_written(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "a" / "base", tiny_checkpoint)
    (tmp_path / "secrets.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    monkeypatch.chdir(tmp_path)
    second = write(Path("elsewhere"), tiny_checkpoint)
    assert contents(first.path) == contents(second.path)
    assert str(tmp_path).encode() not in b"".join(contents(first.path).values())


def test_many_shards_hold_the_same_tensors(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(tmp_path / "whole", tiny_checkpoint)
    monkeypatch.setattr(room, "SHARD_BYTES", 30_000)
    sharded = write(tmp_path / "sharded", tiny_checkpoint)
    files = sorted(file.name for file in sharded.path.glob("*.safetensors"))
    assert len(files) > 5
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sharded.verify() == []
    assert sharded.checkpoint.sha256() == whole.checkpoint.sha256()


def test_the_id_follows_the_files(tmp_path: Path, tiny_base: Path) -> None:
    base = BaseStream.open(tiny_base)
    assert base.id == base_id(base.manifest.files)
    changed = dict(base.manifest.files)
    changed["config.json"] = "0" * 64
    assert base_id(changed) != base.id
    assert base_id({"b": "1" * 64, "a": "2" * 64}) == base_id({"a": "2" * 64, "b": "1" * 64})


def test_verify_names_every_fault_and_ignores_streams(own_base: Path) -> None:
    base = BaseStream.open(own_base)
    stream = own_base / "ortho" / "private"
    stream.mkdir(parents=True)
    (stream / "stream.json").write_text("{}")
    assert base.verify() == []
    weights = own_base / "model-00001-of-00001.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (own_base / "tokenizer.json").unlink()
    (own_base / "notes").mkdir()
    (own_base / "notes" / "extra.txt").write_text("x")
    problems = "\n".join(base.verify())
    assert "model-00001-of-00001.safetensors has changed" in problems
    assert "tokenizer.json is missing" in problems
    assert "notes/extra.txt is not part of the base" in problems
    assert len(base.verify()) == 3


def test_verify_looks_at_scales(own_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = BaseStream.open(own_base)
    monkeypatch.setattr(
        BaseStream, "scales", lambda self, name: torch.zeros(1) if name == FIRST else torch.ones(1)
    )
    assert base.verify() == [f"layer {FIRST} has a scale that is not positive and finite"]


def edit_manifest(path: Path, change: Callable[[dict], None]) -> None:
    file = path / "libortho.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2), "format_version"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.update(base_id="0" * 64), "base_id is not the hash"),
        (lambda m: m["files"].update({"../escape": "0" * 64}), "not a path inside"),
        (lambda m: m["files"].update({"/etc/passwd": "0" * 64}), "not a path inside"),
        (lambda m: m["layers"].update({FIRST: [128, 256]}), r"weight_packed is int32 \[128, 16\]"),
        (lambda m: m["layers"].update({"no.such": [8, 128]}), "no.such.weight_packed is missing"),
        (lambda m: m["quantiser"].update(group_size=64), "quantization_config.config_groups"),
        (lambda m: m["skipped"].update({"other": "why"}), "quantization_config.ignore"),
    ],
)
def test_a_manifest_that_lies_is_refused(own_base: Path, change, message: str) -> None:
    edit_manifest(own_base, change)
    with pytest.raises(FormatError, match=message):
        BaseStream.open(own_base)


def edit_weights(path: Path, change: Callable[[dict], None]) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"]["config_groups"]["group_0"]["weights"])
    file.write_text(json.dumps(config))


def test_a_base_of_another_release_of_compressed_tensors_opens(own_base: Path) -> None:
    """0.17, which vLLM 0.32 pins, writes these; later ones leave out what says nothing."""
    more = dict.fromkeys(("actorder", "block_structure", "scale_dtype", "zp_dtype"))
    edit_weights(own_base, lambda weights: weights.update(more, observer="memoryless_minmax"))
    BaseStream.open(own_base)
    edit_weights(own_base, lambda weights: [weights.pop(name, None) for name in more])
    edit_weights(own_base, lambda weights: weights.pop("observer"))
    BaseStream.open(own_base)


@pytest.mark.parametrize("change", [{"actorder": "group"}, {"symmetric": False}, {"dynamic": True}])
def test_a_base_that_stock_runtimes_would_read_in_another_way_does_not(
    own_base: Path, change: dict
) -> None:
    edit_weights(own_base, lambda weights: weights.update(change))
    with pytest.raises(FormatError, match=r"quantization_config\.config_groups"):
        BaseStream.open(own_base)


def test_what_is_no_base_is_refused(tmp_path: Path, tiny_checkpoint: Path, own_base: Path) -> None:
    with pytest.raises(FormatError, match="not a base"):
        BaseStream.open(tiny_checkpoint)
    (own_base / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(FormatError, match="safetensors is missing"):
        BaseStream.open(own_base)


def spoil(name: str, **changes: object) -> Callable[[QuantisedLayer], QuantisedLayer]:
    def change(layer: QuantisedLayer) -> QuantisedLayer:
        values = {**vars(layer), **changes} if layer.name == name else vars(layer)
        return QuantisedLayer(**values)

    return change


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scales": torch.zeros(128, 2, dtype=torch.float16)}, NumericsError),
        ({"scales": torch.full((128, 2), torch.nan, dtype=torch.float16)}, NumericsError),
        ({"scales": torch.ones(128, 2)}, NumericsError),
        ({"codes": torch.full((128, 128), 8, dtype=torch.int8)}, NumericsError),
        ({"codes": torch.zeros(64, 128, dtype=torch.int8)}, CheckpointError),
    ],
)
def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, tiny_checkpoint: Path, changes: dict, error: type[Exception]
) -> None:
    last = "model.layers.1.self_attn.o_proj"
    with pytest.raises(error, match=last):
        write(tmp_path / "base", tiny_checkpoint, change=spoil(last, **changes))
    assert list(tmp_path.iterdir()) == []


def test_layers_that_never_came_are_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"never quantised: .*down_proj"):
        write(tmp_path / "base", tiny_checkpoint, drop=1)
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_directory_and_a_full_disk_are_refused(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write(tmp_path / "taken", tiny_checkpoint)
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", tiny_checkpoint).verify() == []
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="GB free"):
        write(tmp_path / "full", tiny_checkpoint)
