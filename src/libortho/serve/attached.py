"""Which streams an engine serves: read once, when the engine is configured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from libortho.errors import ConfigError, CorruptStream, FormatError, UnsupportedLayer
from libortho.gate import StreamInfo
from libortho.streams.base import BaseStream
from libortho.streams.manifest import MANIFEST_FILE
from libortho.streams.ortho import STREAM_FOLDER, OrthoStream

STREAMS_VARIABLE = "LIBORTHO_STREAMS"
STRICT_VARIABLE = "LIBORTHO_STRICT"


@dataclass(frozen=True)
class ServedStream:
    """One attached stream.

    Attributes:
        info: what the gate needs.
        path: its directory.
        layers: the linears that it holds a part of, by their names in the base.
        bytes: of its files.
    """

    info: StreamInfo
    path: Path
    layers: tuple[str, ...]
    bytes: int

    def open(self) -> OrthoStream:
        """The stream again, in another process or later.

        Raises:
            CorruptStream: another stands there by now.
        """
        stream = OrthoStream.open(self.path)
        if stream.id != self.info.id:
            raise CorruptStream(
                f"{self.path}: stream {stream.id[:12]}… stands where the engine was configured for "
                f"{self.info.id[:12]}…; leave streams in place while an engine starts, and start "
                "it again"
            )
        return stream


@dataclass(frozen=True)
class Attached:
    """The streams of one engine, in the order of the rows of its α buffer.

    Attributes:
        streams: none for anything but a base directory with streams.
        reason: why there are none; empty where there are some.
    """

    streams: tuple[ServedStream, ...] = ()
    reason: str = ""

    @property
    def infos(self) -> list[StreamInfo]:
        return [stream.info for stream in self.streams]

    @property
    def layers(self) -> set[str]:
        """Every linear that some stream holds a part of."""
        return {name for stream in self.streams for name in stream.layers}

    def check_unchanged(self) -> None:
        """Raise CorruptStream unless every file is still the one that was attached."""
        for stream in self.streams:
            stream.open().check_files()

    def fingerprint(self) -> str:
        """sha256 of what the streams make of the model's graph: which layers hold which."""
        graph = [[stream.info.name, stream.info.id, stream.layers] for stream in self.streams]
        return hashlib.sha256(json.dumps(graph).encode()).hexdigest()


def find_attached(model: str, environment: Mapping[str, str]) -> Attached:
    """Open the streams of a model that vLLM was told to serve; tensors stay on disk.

    Args:
        model: the model path as vLLM has it.
        environment: holds ``LIBORTHO_STREAMS`` and ``LIBORTHO_STRICT``.

    Raises:
        ConfigError: a stream that the environment names is not there.
        FormatError: the base, or a stream, breaks the format.
        PairMismatch: a stream belongs to another base.
        CorruptStream: a file of a stream is not the one that its manifest names.
        UnsupportedLayer: a stream changes more than linears; every such entry is named.
    """
    strict = environment.get(STRICT_VARIABLE, "")
    if strict not in ("", "0", "1"):
        raise ConfigError(f"{STRICT_VARIABLE}: expected 0 or 1, found {strict!r}")
    if strict == "1":
        return Attached(reason=f"{STRICT_VARIABLE}=1: this engine never loads a stream")
    directory = Path(model)
    if not directory.is_dir():
        return Attached(
            reason=f"{model} is not a directory on this machine, and only one of "
            "those has its streams attached: download it and serve its path"
        )
    folder = directory / STREAM_FOLDER
    if not (directory / MANIFEST_FILE).is_file():
        if folder.is_dir():
            raise FormatError(
                f"{directory}: {STREAM_FOLDER}/ without {MANIFEST_FILE}; serve the directory that "
                "`libortho quantize` wrote, or delete the folder"
            )
        return Attached(reason=f"{directory} is no libortho base (it has no {MANIFEST_FILE})")
    names = _names(folder, environment.get(STREAMS_VARIABLE))
    if not names:
        return Attached(reason=f"no stream lies under {folder}")
    base = BaseStream.open(directory)
    shapes = base.stream_shapes()
    streams, problems = [], []
    for name in names:
        stream = OrthoStream.open(folder / name)
        stream.check_pair(base.id, shapes)
        stream.check_files()
        manifest = stream.manifest
        outside = sorted(set(manifest.layers) - set(base.layers))
        if outside:
            problems.append(f"{name}: {', '.join(outside)}")
        size = sum((stream.path / file).stat().st_size for file in manifest.files)
        streams.append(
            ServedStream(StreamInfo.of(stream), stream.path, tuple(manifest.layers), size)
        )
    if problems:
        raise UnsupportedLayer(
            "vLLM can gate linears only, and these streams change other parameters: "
            f"{'; '.join(problems)}. Leave them out with {STREAMS_VARIABLE}=NAME,NAME, or serve "
            "them with libortho.load"
        )
    return Attached(tuple(streams))


def _names(folder: Path, wanted: str | None) -> list[str]:
    there = (
        sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        if folder.is_dir()
        else []
    )
    if wanted is None:
        return there
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    missing = [name for name in names if name not in there]
    if missing or len(set(names)) < len(names) or not names:
        raise ConfigError(
            f"{STREAMS_VARIABLE}={wanted!r}: expected names out of {', '.join(there) or 'none'}, "
            f"each once; for no stream at all set {STRICT_VARIABLE}=1"
        )
    return names
