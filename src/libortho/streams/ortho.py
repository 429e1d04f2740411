"""An ortho stream on disk: ``ortho-*.safetensors`` beside ``stream.json``.

A stream belongs to one base, named by its id, and speaks of itself only: adding, replacing or
deleting one changes no byte of the base directory. Three kinds of layer are stored here:

* ``csr``: ``<layer>.indptr`` int32 [N + 1], ``.indices`` int32 [nnz], ``.values`` fp16 [nnz];
  columns sorted within a row, no duplicates.
* ``lowrank``: ``<layer>.a`` [r, K], ``.b`` [N, r] in the adapter's own dtype, and a ``scaling`` in
  the manifest; the layer adds ``scaling · b · a``.
* ``dense``: ``<name>.delta`` fp16: the whole difference of a linear [N, K], or, where ``<name>`` is
  a parameter of the base that is not INT4 (an embedding, a norm, a bias, the head), of that one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from libortho.errors import (
    ConfigError,
    CorruptStream,
    FormatError,
    PairMismatch,
)
from libortho.streams.layers import CsrLayer, DenseLayer, Layer, LowRankLayer

FORMAT_VERSION = 1
STREAM_FOLDER = "ortho"
MANIFEST = "stream.json"
BASE = "base"
"""What no stream may be called: the base stands under it beside the streams' names."""

SHARD_BYTES = 2 * 2**30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PARTS = {"csr": ("indptr", "indices", "values"), "lowrank": ("a", "b"), "dense": ("delta",)}
_FILE = re.compile(r"ortho-\d+-of-\d+\.safetensors")

Guarantee = Literal["exact", "measured", "none"]


class LayerEntry(BaseModel):
    """What the manifest says of one layer: its kind and its shape, [N, K] but for ``dense``."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["csr", "lowrank", "dense"]
    shape: tuple[int, ...]
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


def check_name(name: str) -> str:
    """Return ``name`` if it can name a stream; ConfigError otherwise."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"stream name {name!r}: expected 1 to 64 letters, digits, '-' or '_', "
            "beginning with a letter or digit; choose another with --stream"
        )
    if name == BASE:
        raise ConfigError(
            f"stream name {name!r}: that word means the weights that no stream holds; "
            "choose another with --stream"
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
            ConfigError: it stands among a base's streams under another name than its own.
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
        outside = [name for name in manifest.files if not _FILE.fullmatch(name)]
        if outside:
            raise FormatError(f"{file}: not file names of a stream: {', '.join(outside)}")
        if manifest.format_version != FORMAT_VERSION:
            raise FormatError(
                f"{file}: format version {manifest.format_version}, "
                f"this libortho reads {FORMAT_VERSION}; use a matching release"
            )
        check_folder(path, manifest.name)
        stream = cls(path, manifest)
        missing = [
            name
            for layer, entry in manifest.layers.items()
            for name in tensor_names(layer, entry)
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
        tensors = [self._tensor(tensor) for tensor in tensor_names(name, entry)]
        layer: Layer
        if entry.kind == "csr":
            indptr, indices, values = tensors
            layer = CsrLayer(indptr, indices, values, _matrix(self.path, name, entry))
        elif entry.kind == "lowrank":
            a, b = tensors
            layer = LowRankLayer(a, b, entry.scaling)
        else:
            layer = DenseLayer(tensors[0])
        problems = layer.problems()
        if not isinstance(layer, LowRankLayer):
            stored = layer.values if isinstance(layer, CsrLayer) else layer.delta
            if stored.dtype != torch.float16:
                problems.append(f"values are stored as {stored.dtype}, expected float16")
        if not problems and (layer.shape, layer.nnz) != (entry.shape, entry.nnz):
            problems = [
                f"{layer.nnz} values for shape {layer.shape}, the manifest says "
                f"{entry.nnz} for {entry.shape}"
            ]
        if problems:
            raise CorruptStream(f"{self.path}: layer {name}: {'; '.join(problems)}")
        return layer

    def check_pair(self, base_id: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise PairMismatch unless this stream was made for the base given.

        Args:
            shapes: of all that a stream may hold, by name (``BaseStream.stream_shapes``).
        """
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

    def check_files(self) -> None:
        """Raise CorruptStream unless every file is the one that the id stands for."""
        problems = self._file_problems()
        if problems:
            raise CorruptStream("; ".join(problems) + "; copy the stream again")

    def verify(self) -> list[str]:
        """Recompute every sha256, check every layer and every value; return all problems."""
        on_disk = {file.name for file in self.path.iterdir()} - {MANIFEST}
        problems = [
            f"{self.path / file}: not listed in {MANIFEST}"
            for file in sorted(on_disk - set(self.manifest.files))
        ]
        problems += self._file_problems()
        for name in self.manifest.layers:
            try:
                layer = self.layer(name)
            except CorruptStream as error:
                problems.append(str(error))
                continue
            if not all(bool(torch.isfinite(tensor).all()) for tensor in stored_tensors(layer)):
                problems.append(f"{self.path}: layer {name}: values are not finite")
        return problems

    def _file_problems(self) -> list[str]:
        problems = []
        for file, expected in sorted(self.manifest.files.items()):
            found = sha256_file(self.path / file)
            if found != expected:
                problems.append(
                    f"{self.path / file}: sha256 {found[:12]}…, {MANIFEST} says {expected[:12]}…"
                )
        manifest = self.manifest
        if stream_id(manifest.base_id, manifest.files, manifest.layers) != manifest.id:
            problems.append(
                f"{self.path / MANIFEST}: the id does not follow from base, files and layers"
            )
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


def stream_id(base_id: str, files: Mapping[str, str], layers: Mapping[str, LayerEntry]) -> str:
    """sha256 over all that decides what a stream does.

    That is the base's id, the sorted (file, sha256) pairs, and of every layer, sorted by name, what
    the manifest alone says: its kind, its shape and its scaling.
    """
    lines = [base_id, *(f"{file} {digest}" for file, digest in sorted(files.items()))]
    for name, entry in sorted(layers.items()):
        shape = "x".join(str(length) for length in entry.shape)
        lines.append(f"{name} {entry.kind} {shape} {entry.scaling!r}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes; CorruptStream when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptStream(f"{path}: {error}") from error


def check_folder(path: Path, name: str) -> None:
    """Streams of a base are picked by folder and opened by name: the two must be one."""
    path = path.absolute()
    if path.parent.name == STREAM_FOLDER and path.name != name:
        raise ConfigError(
            f"{path}: the stream in this folder is called {name!r}, not {path.name!r}; "
            f"name the folder {name!r}"
        )


def tensor_names(layer: str, entry: LayerEntry) -> list[str]:
    return [f"{layer}.{part}" for part in _PARTS[entry.kind]]


def stored_tensors(layer: Layer) -> tuple[Tensor, ...]:
    """What is stored of a layer, in the order of ``_PARTS`` and in its stored dtype."""
    if isinstance(layer, CsrLayer):
        return layer.indptr, layer.indices, layer.values.to(torch.float16)
    if isinstance(layer, LowRankLayer):
        return layer.a, layer.b
    return (layer.delta.to(torch.float16),)


def _matrix(path: Path, name: str, entry: LayerEntry) -> tuple[int, int]:
    if len(entry.shape) != 2:
        raise CorruptStream(
            f"{path}: layer {name}: shape {entry.shape} of a {entry.kind} layer; expected (N, K)"
        )
    rows, columns = entry.shape
    return rows, columns
