"""Writing an ortho stream: the whole of it appears, or nothing does."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from libortho.errors import ConfigError, CorruptStream, NumericsError
from libortho.streams.layers import CsrLayer, DenseLayer, Layer
from libortho.streams.ortho import (
    MANIFEST,
    STREAM_FOLDER,
    Guarantee,
    LayerEntry,
    OrthoStream,
    StreamManifest,
    check_folder,
    check_name,
    sha256_file,
    stored_tensors,
    stream_id,
    tensor_names,
)

SHARD_BYTES = 2 * 2**30


def vacant(base: str | Path, name: str) -> Path:
    """The directory where a new stream of the base at ``base`` will stand.

    Ask before any work, so that no training is lost to a name that is taken.

    Raises:
        ConfigError: the name is not allowed, or a stream of that name stands there.
    """
    directory = Path(base) / STREAM_FOLDER / check_name(name)
    _check_free(directory)
    return directory


def write_stream(
    directory: Path,
    *,
    name: str,
    base_id: str,
    public: bool,
    method: str,
    guarantee: Guarantee,
    layers: Iterable[tuple[str, Layer]],
    requires: Iterable[str] = (),
    made_with: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> OrthoStream:
    """Write a stream directory at once: either the whole of it appears, or nothing does.

    Args:
        directory: where the stream will stand, such as ``OUT/ortho/private``.
        layers: (layer name, layer) pairs; consumed once, written shard by shard.
        requires: ids of the public streams that must be open with this one.
        made_with: options and versions, for the record.

    Raises:
        ConfigError: the directory exists and ``replace`` is false, or the name is not allowed or
            not the directory's own among a base's streams.
        CorruptStream: a layer breaks the format's rules.
        NumericsError: a layer holds NaN or Inf, or what fp16 cannot hold.
    """
    check_folder(directory, check_name(name))
    if not replace:
        _check_free(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=directory.parent))
    try:
        entries = _write_shards(scratch, layers)
        files = {file.name: sha256_file(file) for file in sorted(scratch.glob("*.safetensors"))}
        stored = sum(entry.nnz for entry in entries.values())
        weights = sum(math.prod(entry.shape) for entry in entries.values())
        manifest = StreamManifest(
            name=name,
            id=stream_id(base_id, files, entries),
            base_id=base_id,
            public=public,
            method=method,
            guarantee=guarantee,
            requires=sorted(requires),
            layers=entries,
            files=files,
            density=stored / weights if weights else 0.0,
            made_with=dict(made_with or {}),
        )
        (scratch / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
        scratch.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(scratch, directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return OrthoStream.open(directory)


def _check_free(directory: Path) -> None:
    if directory.exists():
        raise ConfigError(f"{directory}: already there; choose another --stream or delete it first")


def _entry(layer: Layer) -> LayerEntry:
    if isinstance(layer, CsrLayer):
        return LayerEntry(kind="csr", shape=layer.shape, nnz=layer.nnz)
    if isinstance(layer, DenseLayer):
        return LayerEntry(kind="dense", shape=layer.shape, nnz=layer.nnz)
    rank = layer.a.shape[0]
    return LayerEntry(
        kind="lowrank", shape=layer.shape, rank=rank, nnz=layer.nnz, scaling=layer.scaling
    )


def _write_shards(scratch: Path, layers: Iterable[tuple[str, Layer]]) -> dict[str, LayerEntry]:
    entries: dict[str, LayerEntry] = {}
    pending: dict[str, Tensor] = {}
    shards: list[Path] = []

    def flush() -> None:
        shards.append(scratch / f"shard-{len(shards)}")
        save_file(pending, shards[-1])
        pending.clear()

    for name, layer in layers:
        problems = layer.problems()
        if problems:
            raise CorruptStream(f"layer {name}: {'; '.join(problems)}")
        entries[name] = _entry(layer)
        tensors = stored_tensors(layer)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise NumericsError(f"layer {name}: values are not finite as they would be stored")
        keys = tensor_names(name, entries[name])
        pending.update({key: t.contiguous() for key, t in zip(keys, tensors, strict=True)})
        if sum(tensor.nbytes for tensor in pending.values()) >= SHARD_BYTES:
            flush()
    if pending or not shards:
        flush()
    for position, shard in enumerate(shards):
        shard.rename(scratch / f"ortho-{position + 1:05d}-of-{len(shards):05d}.safetensors")
    return entries
