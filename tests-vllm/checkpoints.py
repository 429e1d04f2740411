"""Directories to serve: the reference model's base, with streams that change what it says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import libortho
from libortho.streams.base import BaseStream
from libortho.streams.layers import DenseLayer, Layer, LowRankLayer, csr_from_dense
from libortho.streams.ortho import MANIFEST, OrthoStream, sha256_file, stream_id
from libortho.streams.ortho_writer import write_stream

GROUP_SIZE = 64
"""Of the base: its rows of 384 inputs are then whole groups on each of two ranks."""


def make_base(out: Path) -> Path:
    libortho.quantize("reference", out, method="absmax", group_size=GROUP_SIZE)
    return out


def beside(base: Path, out: Path) -> Path:
    """A copy of a base to put streams into; its files are links."""
    shutil.copytree(base, out, copy_function=os.link)
    return out


def with_two(base: Path, out: Path) -> Path:
    """``repair`` and ``private``, both sparse; repair leaves out one projection of a joined one."""
    directory = beside(base, out)
    add(directory, "repair", sparse(0.01), public=True, leave_out=("layers.0.self_attn.k_proj",))
    add(directory, "private", sparse(0.03))
    return directory


def with_many(base: Path, out: Path) -> Path:
    """Those two, a tenant of every kind of layer, and a stream that requires ``repair``."""
    directory = with_two(base, out)
    add(directory, "tenant-7", mixed)
    repair = OrthoStream.open(directory / "ortho" / "repair").id
    add(directory, "bound", sparse(0.02), requires=(repair,))
    return directory


def add(
    directory: Path,
    name: str,
    make: Callable[[str, torch.Tensor, torch.Generator], Layer],
    *,
    public: bool = False,
    leave_out: tuple[str, ...] = (),
    requires: tuple[str, ...] = (),
) -> OrthoStream:
    base = BaseStream.open(directory)
    generator = torch.Generator().manual_seed(sum(name.encode()))

    def layers() -> Iterator[tuple[str, Layer]]:
        for layer in base.layers:
            if not any(layer.endswith(part) for part in leave_out):
                yield layer, make(layer, base.weight(layer), generator)

    return write_stream(
        directory / "ortho" / name,
        name=name,
        base_id=base.id,
        public=public,
        method="random",
        guarantee="none",
        layers=layers(),
        requires=requires,
    )


def sparse(density: float) -> Callable[[str, torch.Tensor, torch.Generator], Layer]:
    """Entries as large as the weights' own spread, three times over."""

    def make(name: str, weight: torch.Tensor, generator: torch.Generator) -> Layer:
        mask = torch.rand(weight.shape, generator=generator) < density
        values = 3 * weight.std() * torch.randn(weight.shape, generator=generator)
        return csr_from_dense(values, mask)

    return make


def mixed(name: str, weight: torch.Tensor, generator: torch.Generator) -> Layer:
    """An adapter on q and up, a whole difference on k and down, sparse parts elsewhere."""
    rows, columns = weight.shape
    noise = weight.std() / 4
    if name.endswith(("q_proj", "up_proj")):
        a = torch.randn(4, columns, generator=generator)
        b = torch.randn(rows, 4, generator=generator) * noise
        return LowRankLayer(a, b, 0.5)
    if name.endswith(("k_proj", "down_proj")):
        delta = torch.randn(rows, columns, generator=generator) * noise
        return DenseLayer(delta.to(torch.float16))
    return sparse(0.02)(name, weight, generator)


def poison(directory: Path) -> None:
    """Make every value of every stream NaN, manifests in order."""
    for folder in sorted((directory / "ortho").iterdir()):
        manifest = json.loads((folder / MANIFEST).read_text())
        for file in manifest["files"]:
            tensors = {
                name: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor
                for name, tensor in load_file(folder / file).items()
            }
            (folder / file).unlink()  # it may be a link to the file of another directory
            save_file(tensors, folder / file)
            manifest["files"][file] = sha256_file(folder / file)
        layers = OrthoStream.open(folder).manifest.layers
        manifest["id"] = stream_id(manifest["base_id"], manifest["files"], layers)
        (folder / MANIFEST).unlink()
        (folder / MANIFEST).write_text(json.dumps(manifest))
