"""The first law: at alpha 0 a model is its base, whatever its streams hold, wherever they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from libortho import gate
from libortho.errors import CorruptStream
from libortho.linear import CsrStream
from libortho.model import attach, detach, linears, load
from libortho.streams.base import BaseStream
from libortho.streams.ortho import MANIFEST, OrthoStream, stream_id
from libortho.streams.ortho_writer import write_stream

KINDS = ("csr", "lowrank", "dense")
POISONS = (math.nan, math.inf, -math.inf)


def logits(model, ids, alpha=0.0):
    with torch.no_grad(), gate.alpha(alpha):
        return model(input_ids=ids).logits


def write(base: Path, layers, name: str = "private") -> OrthoStream:
    return write_stream(
        base / "ortho" / name,
        name=name,
        base_id=BaseStream.open(base).id,
        public=False,
        method="test",
        guarantee="none",
        layers=layers.items(),
    )


def poison_on_disk(stream: OrthoStream, value: float) -> None:
    """Overwrite every float of a stream and let its manifest speak of the new bytes."""
    manifest = json.loads((stream.path / MANIFEST).read_text())
    for name in manifest["files"]:
        tensors = load_file(stream.path / name)
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.fill_(value)
        save_file(tensors, stream.path / name)
        digest = hashlib.sha256((stream.path / name).read_bytes()).hexdigest()
        manifest["files"][name] = digest
    manifest["id"] = stream_id(manifest["base_id"], manifest["files"], stream.manifest.layers)
    (stream.path / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def expected(model, ids):
    """Logits of the base alone."""
    return logits(model, ids)


@pytest.mark.parametrize("value", POISONS)
def test_poison_in_memory(model, ids, expected, attach_random, kind: str, value: float) -> None:
    attach_random(model, kind=kind)
    assert torch.equal(logits(model, ids), expected)
    assert not torch.equal(logits(model, ids, 1), expected)
    with torch.no_grad():
        for module in linears(model).values():
            stream = module.streams["private"]
            parts = (stream.values,) if isinstance(stream, CsrStream) else stream.parameters()
            for part in parts:
                part.fill_(value)
    assert torch.equal(logits(model, ids), expected)
    assert not bool(torch.isfinite(logits(model, ids, 1)).any())
    # Rows that are closed do not feel what open rows of the same batch read.
    mixed = logits(model, ids, [0, 1, 0, 1])
    assert torch.equal(mixed[[0, 2]], expected[[0, 2]])
    assert not bool(torch.isfinite(mixed[[1, 3]]).any())


@pytest.mark.parametrize("value", POISONS)
def test_poison_on_disk(own_base: Path, ids, expected, make_layers, kind: str, value: float):
    stream = write(own_base, make_layers(kind))
    poison_on_disk(stream, value)
    model = load(own_base, ["private"])
    assert torch.equal(logits(model, ids), expected)
    assert not bool(torch.isfinite(logits(model, ids, 1)).any())
    assert any("not finite" in problem for problem in OrthoStream.open(stream.path).verify())


def test_gone_from_disk(own_base: Path, ids, expected, make_layers, kind: str) -> None:
    write(own_base, make_layers(kind))
    model = load(own_base, ["private"])
    opened = logits(model, ids, 1)
    shutil.rmtree(own_base / "ortho")
    assert torch.equal(logits(model, ids), expected)
    assert torch.equal(logits(model, ids, 1), opened)
    assert torch.equal(logits(load(own_base), ids), expected)


def test_detached(model, ids, expected, attach_random, kind: str) -> None:
    attach_random(model, kind=kind)
    assert not torch.equal(logits(model, ids, 1), expected)
    detach(model, "private")
    assert not any(module.streams for module in linears(model).values())
    assert torch.equal(logits(model, ids), expected)


def test_replaced_by_another(own_base: Path, ids, expected, make_layers, kind: str) -> None:
    first = write(own_base, make_layers(kind, seed=1))
    model = load(own_base, ["private"])
    opened = logits(model, ids, 1)
    shutil.rmtree(first.path)
    second = write(own_base, make_layers(kind, seed=2))
    assert second.id != first.id
    detach(model, "private")
    attach(model, "private")
    assert torch.equal(logits(model, ids), expected)
    assert not torch.equal(logits(model, ids, 1), opened)


def test_generation_is_that_of_the_base(model, ids, attach_random, kind: str) -> None:
    def produce():
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            eos_token_id=-1,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )

    before = produce()
    attach_random(model, kind=kind)
    after = produce()
    assert torch.equal(after.sequences, before.sequences)
    assert torch.equal(torch.stack(after.logits), torch.stack(before.logits))


def test_bytes_that_are_not_those_of_the_manifest_are_refused(
    own_base: Path, make_layers, kind: str
) -> None:
    """Two streams of one shape whose files changed places: only their sha256 tells."""
    layers = make_layers(kind, seed=1)
    first = write(own_base, layers)
    changed = {"csr": "values", "lowrank": "a", "dense": "delta"}[kind]
    halved = {
        name: dataclasses.replace(layer, **{changed: getattr(layer, changed) / 2})
        for name, layer in layers.items()
    }
    second = write(own_base, halved, "other")
    (file,) = first.manifest.files
    (first.path / file).rename(own_base / "aside")
    (second.path / file).rename(first.path / file)
    (own_base / "aside").rename(second.path / file)
    for name in ("private", "other"):
        with pytest.raises(CorruptStream, match=rf"{name}/{file}: sha256"):
            load(own_base, [name])
