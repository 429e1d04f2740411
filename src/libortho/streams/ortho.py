"""An ortho stream on disk: ``ortho-*.safetensors`` beside ``stream.json``.

A stream belongs to one base, named by its id, and speaks of itself only: adding, replacing or
deleting one changes no byte of the base directory. Two kinds of layer are stored here:

* ``csr``: ``<layer>.indptr`` int32 [N + 1], ``.indices`` int32 [nnz], ``.values`` fp16 [nnz];
  columns sorted within a row, no duplicates.
* ``lowrank``: ``<layer>.a`` [r, K], ``.b`` [N, r] in the adapter's own dtype, and a ``scaling`` in
  the manifest; the layer adds ``scaling · b · a``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from libortho.errors import ConfigError, CorruptStream, FormatError, PairMismatch

FORMAT_VERSION = 1
STREAM_FOLDER = "ortho"
MANIFEST = "stream.json"
SHARD_BYTES = 2 * 2**30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Guarantee = Literal["exact", "measured", "none"]


class LayerEntry(BaseModel):
    """What the manifest says of one layer: its kind and its [N, K] shape."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["csr", "lowrank"]
    shape: tuple[int, int]
    nnz: int = 0
    rank: int = 0
    scaling: float = 1.0


class StreamManifest(BaseModel):
    """``stream.json``: which base the stream belongs to, what it is, and its files' sha256."""

    model_config = ConfigDict(extra="forbid")
    format_version: int = FORMAT_VERSION
    name: str
    id: str
    base_id: str
    public: bool
    method: str
    guarantee: Guarantee
    requires: list[str]
    density: float
    layers: dict[str, LayerEntry]
    files: dict[str, str]
    made_with: dict[str, Any]


@dataclass(frozen=True)
class CsrLayer:
    """A sparse [N, K] matrix: int32 ``indptr`` [N + 1], int32 ``indices`` and ``values`` [nnz]."""

    indptr: Tensor
    indices: Tensor
    values: Tensor
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        return self.values.numel()

    def rows(self) -> Tensor:
        """Row of every entry, int64 [nnz]."""
        counts = torch.diff(self.indptr.long())
        return torch.repeat_interleave(torch.arange(self.shape[0]), counts)

    def dense(self) -> Tensor:
        """The matrix as fp32 [N, K]."""
        matrix = torch.zeros(self.shape)
        matrix[self.rows(), self.indices.long()] = self.values.float()
        return matrix

    def problems(self) -> list[str]:
        """Every rule of the format that these tensors break, in words."""
        n, k = self.shape
        found: list[str] = []
        if self.indptr.dtype != torch.int32 or tuple(self.indptr.shape) != (n + 1,):
            found.append(
                f"indptr is {self.indptr.dtype} {list(self.indptr.shape)}, expected int32 [{n + 1}]"
            )
        if self.indices.dtype != torch.int32:
            found.append(f"indices are {self.indices.dtype}, expected int32")
        if not self.values.dtype.is_floating_point:
            found.append(f"values are {self.values.dtype}, expected fp16")
        if self.indices.shape != self.values.shape or self.values.dim() != 1:
            found.append(
                f"indices {list(self.indices.shape)} and values "
                f"{list(self.values.shape)} must be one row of equal length"
            )
        if found:
            return found
        steps = torch.diff(self.indptr.long())
        ends = (int(self.indptr[0]), int(self.indptr[-1]))
        if ends != (0, self.nnz) or bool((steps < 0).any()):
            return [f"indptr must rise from 0 to {self.nnz}, found {ends[0]} to {ends[1]}"]
        if self.nnz:
            columns = self.indices.long()
            if int(columns.min()) < 0 or int(columns.max()) >= k:
                found.append(
                    f"column indices span {int(columns.min())}…{int(columns.max())}, "
                    f"allowed 0…{k - 1}"
                )
            elif bool((torch.diff(self.rows() * k + columns) <= 0).any()):
                found.append("columns of a row must rise strictly")
        return found


@dataclass(frozen=True)
class LowRankLayer:
    """An adapter kept as its factors: adds ``scaling · b · a`` with a [r, K] and b [N, r]."""

    a: Tensor
    b: Tensor
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def dense(self) -> Tensor:
        """The matrix as fp32 [N, K]."""
        return self.scaling * (self.b.float() @ self.a.float())

    def problems(self) -> list[str]:
        """Every rule of the format that these tensors break, in words."""
        if self.a.dim() != 2 or self.b.dim() != 2 or self.a.shape[0] != self.b.shape[1]:
            return [f"a {list(self.a.shape)} and b {list(self.b.shape)} must be [r, K] and [N, r]"]
        return []


Layer = CsrLayer | LowRankLayer


def csr_from_dense(matrix: Tensor, mask: Tensor) -> CsrLayer:
    """Gather the entries of ``matrix`` [N, K] where ``mask`` is set into a CSR layer (fp16)."""
    indptr, indices = csr_support(mask)
    return CsrLayer(indptr, indices, matrix[mask].to(torch.float16), tuple(matrix.shape))


def csr_support(mask: Tensor) -> tuple[Tensor, Tensor]:
    """``indptr`` int32 [N + 1] and ``indices`` int32 [nnz] of a boolean mask [N, K]."""
    counts = mask.sum(1)
    indptr = torch.zeros(mask.shape[0] + 1, dtype=torch.int32)
    indptr[1:] = counts.cumsum(0)
    return indptr, mask.nonzero()[:, 1].to(torch.int32)


def check_name(name: str) -> str:
    """Return ``name`` if it can name a stream; ConfigError otherwise."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"stream name {name!r}: expected 1 to 64 letters, digits, '-' or '_', "
            "beginning with a letter or digit; choose another with --stream"
        )
    return name


class OrthoStream:
    """A stream opened for reading; layers are read lazily, one at a time."""

    def __init__(self, path: Path, manifest: StreamManifest) -> None:
        self.path = path
        self.manifest = manifest
        self._shard_of = {}
        for file in sorted(manifest.files):
            with self._shard(file) as shard:
                self._shard_of.update(dict.fromkeys(shard.keys(), file))

    @classmethod
    def open(cls, path: str | Path) -> OrthoStream:
        """Open a stream directory.

        Raises:
            FormatError: there is no readable ``stream.json`` of this format version.
            CorruptStream: a file or tensor that the manifest names is missing.
        """
        path = Path(path)
        file = path / MANIFEST
        if not file.is_file():
            raise FormatError(
                f"{path}: no {MANIFEST}; expected a stream directory such as "
                f"OUT/{STREAM_FOLDER}/private"
            )
        try:
            manifest = StreamManifest.model_validate_json(file.read_text("utf-8"))
        except ValidationError as error:
            raise FormatError(f"{file}: {error}") from error
        if manifest.format_version != FORMAT_VERSION:
            raise FormatError(
                f"{file}: format version {manifest.format_version}, "
                f"this libortho reads {FORMAT_VERSION}; use a matching release"
            )
        stream = cls(path, manifest)
        missing = [
            name
            for layer, entry in manifest.layers.items()
            for name in _tensor_names(layer, entry)
            if name not in stream._shard_of
        ]
        if missing:
            raise CorruptStream(
                f"{path}: tensors missing: {', '.join(missing)}; copy the stream again"
            )
        return stream

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def id(self) -> str:
        return self.manifest.id

    def layer(self, name: str) -> Layer:
        """Read one layer.

        Raises:
            CorruptStream: the tensors break the rules of their kind.
        """
        entry = self.manifest.layers[name]
        tensors = [self._tensor(tensor) for tensor in _tensor_names(name, entry)]
        layer: Layer
        if entry.kind == "csr":
            layer = CsrLayer(*tensors, shape=entry.shape)
        else:
            layer = LowRankLayer(*tensors, scaling=entry.scaling)
        problems = layer.problems()
        if not problems and layer.shape != entry.shape:
            problems = [f"shape {layer.shape}, the manifest says {entry.shape}"]
        if problems:
            raise CorruptStream(f"{self.path}: layer {name}: {'; '.join(problems)}")
        return layer

    def check_pair(self, base_id: str, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raise PairMismatch unless this stream was made for the base given."""
        if self.manifest.base_id != base_id:
            raise PairMismatch(
                f"{self.path}: stream {self.name!r} belongs to base {self.manifest.base_id[:12]}…, "
                f"this base is {base_id[:12]}…; load it with the base it was made for"
            )
        strangers = [
            f"{name} {entry.shape}"
            for name, entry in self.manifest.layers.items()
            if shapes.get(name) != entry.shape
        ]
        if strangers:
            raise PairMismatch(
                f"{self.path}: layers that the base lacks or has in another "
                f"shape: {', '.join(strangers)}"
            )

    def verify(self) -> list[str]:
        """Recompute every sha256, check every layer and every value; return all problems."""
        problems = []
        on_disk = {file.name for file in self.path.iterdir()} - {MANIFEST}
        for file in sorted(on_disk - set(self.manifest.files)):
            problems.append(f"{self.path / file}: not listed in {MANIFEST}")
        for file, expected in sorted(self.manifest.files.items()):
            found = sha256_file(self.path / file)
            if found != expected:
                problems.append(
                    f"{self.path / file}: sha256 {found[:12]}…, {MANIFEST} says {expected[:12]}…"
                )
        if stream_id(self.manifest.base_id, self.manifest.files) != self.manifest.id:
            problems.append(f"{self.path / MANIFEST}: the id does not follow from base and files")
        for name in self.manifest.layers:
            try:
                layer = self.layer(name)
            except CorruptStream as error:
                problems.append(str(error))
                continue
            floats = (layer.values,) if isinstance(layer, CsrLayer) else (layer.a, layer.b)
            if not all(bool(torch.isfinite(tensor).all()) for tensor in floats):
                problems.append(f"{self.path}: layer {name}: values are not finite")
        return problems

    def _shard(self, file: str) -> Any:
        try:
            return safe_open(self.path / file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CorruptStream(f"{self.path / file}: {error}; copy the stream again") from error

    def _tensor(self, name: str) -> Tensor:
        with self._shard(self._shard_of[name]) as shard:
            tensor: Tensor = shard.get_tensor(name)
        return tensor


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
        ConfigError: the directory exists and ``replace`` is false, or the name is not allowed.
        CorruptStream: a layer breaks the format's rules.
    """
    check_name(name)
    if directory.exists() and not replace:
        raise ConfigError(f"{directory}: already there; choose another --stream or delete it first")
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=directory.parent))
    try:
        entries = _write_shards(scratch, layers)
        files = {file.name: sha256_file(file) for file in sorted(scratch.glob("*.safetensors"))}
        stored = sum(entry.nnz for entry in entries.values())
        weights = sum(entry.shape[0] * entry.shape[1] for entry in entries.values())
        manifest = StreamManifest(
            name=name,
            id=stream_id(base_id, files),
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


def stream_id(base_id: str, files: Mapping[str, str]) -> str:
    """sha256 over the base's id and the sorted (file, sha256) pairs."""
    lines = [base_id, *(f"{file} {digest}" for file, digest in sorted(files.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes; CorruptStream when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptStream(f"{path}: {error}") from error


def _tensor_names(layer: str, entry: LayerEntry) -> list[str]:
    parts = ("indptr", "indices", "values") if entry.kind == "csr" else ("a", "b")
    return [f"{layer}.{part}" for part in parts]


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
        if isinstance(layer, CsrLayer):
            entries[name] = LayerEntry(kind="csr", shape=layer.shape, nnz=layer.nnz)
            tensors = (layer.indptr, layer.indices, layer.values.to(torch.float16))
        else:
            entries[name] = LayerEntry(
                kind="lowrank",
                shape=layer.shape,
                rank=layer.a.shape[0],
                nnz=layer.a.numel() + layer.b.numel(),
                scaling=layer.scaling,
            )
            tensors = (layer.a, layer.b)
        keys = _tensor_names(name, entries[name])
        pending.update({key: t.contiguous() for key, t in zip(keys, tensors, strict=True)})
        if sum(tensor.nbytes for tensor in pending.values()) >= SHARD_BYTES:
            flush()
    if pending or not shards:
        flush()
    for position, shard in enumerate(shards):
        shard.rename(scratch / f"ortho-{position + 1:05d}-of-{len(shards):05d}.safetensors")
    return entries
