"""``verify``, ``inspect`` and ``doctor``: what is on disk, and what runs here."""

from __future__ import annotations

import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from libortho import ops
from libortho.cli.console import emit, shown
from libortho.cli.options import Json
from libortho.errors import BackendUnavailable
from libortho.experiments.states import bits_per_weight, checkpoint_bytes, stream_bytes
from libortho.model import attached_bytes
from libortho.streams.base import BaseStream
from libortho.streams.ortho import MANIFEST, STREAM_FOLDER, OrthoStream
from libortho.verify import verify

PACKAGES = ("libortho", "torch", "transformers", "peft", "compressed-tensors", "safetensors")
BROKEN = 1


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("verify")(verify_verb)
    app.command("inspect")(inspect_verb)
    app.command("doctor")(doctor_verb)


def verify_verb(
    path: Annotated[Path, typer.Argument(help="A base directory.")],
    rebuild: Annotated[
        str | None, typer.Option(help="Public checkpoint: build the base again and compare.")
    ] = None,
    texts: Annotated[list[Path] | None, typer.Option("--text")] = None,
    json: Json = False,
) -> None:
    """Recompute every sha256; with --rebuild, prove that the base follows from public inputs."""
    with shown() as progress:
        found = verify(path, rebuild=rebuild, text_files=texts, progress=progress)
    lines = [f"  {problem}" for problem in found.problems]
    lines.insert(0, f"{path}: {found.status}")
    emit(found.as_json(), json, "\n".join(lines))
    raise typer.Exit(0 if found.whole else BROKEN)


def inspect_verb(
    path: Annotated[Path, typer.Argument(help="A base directory.")], json: Json = False
) -> None:
    """Show a base and the streams beside it: ids, densities per layer, bytes."""
    base = BaseStream.open(path)
    found = sorted((base.path / STREAM_FOLDER).glob(f"*/{MANIFEST}"))
    streams = [OrthoStream.open(file.parent) for file in found]
    result: dict[str, Any] = {
        "base_id": base.id,
        "public": base.manifest.public.model_dump(),
        "quantiser": base.manifest.quantiser.model_dump(),
        "bytes": checkpoint_bytes(base.path),
        "bits_per_weight": bits_per_weight(base, sum(map(stream_bytes, streams))),
        "skipped": dict(base.manifest.skipped),
        "experts": {name: list(shape) for name, shape in base.manifest.experts.items()},
        "kept": {name: list(base.checkpoint.shape(name)) for name in base.other_names()},
        "layers": {
            name: {
                "shape": list(shape),
                "relative_error": base.manifest.relative_error.get(name),
                "streams": {
                    stream.name: _density(stream, name)
                    for stream in streams
                    if name in stream.manifest.layers
                },
            }
            for name, shape in base.layers.items()
        },
        "streams": {
            stream.name: stream.manifest.model_dump(exclude={"layers", "files"})
            | {"bytes": stream_bytes(stream), "memory_bytes": attached_bytes(stream)}
            | {"outside": _outside(stream, base)}
            for stream in streams
        },
    }
    lines = [
        f"base {base.id[:12]} of {base.manifest.public.name}, "
        f"{base.manifest.quantiser.method} {base.manifest.quantiser.bits}-bit "
        f"g{base.group_size}, {len(base.layers)} linears, {checkpoint_bytes(base.path):,} bytes"
    ]
    for stream in streams:
        manifest = stream.manifest
        kind = "public" if manifest.public else "private"
        lines.append(
            f"stream {stream.name}: {kind}, {manifest.method}, guarantee {manifest.guarantee}, "
            f"density {manifest.density:.4f}, {stream_bytes(stream):,} bytes, "
            f"{attached_bytes(stream):,} in memory, {stream.id[:12]}"
        )
        lines += [f"  changes {name} {shape}" for name, shape in _outside(stream, base).items()]
    lines += [f"left alone: {name} ({why})" for name, why in base.manifest.skipped.items()]
    kept = result["kept"]
    lines.append(f"kept as they are: {len(kept)} tensors (embeddings, norms, biases and the like)")
    if base.manifest.experts:
        lines.append(
            f"experts: {len(base.manifest.experts)} matrices in INT4, where no stream acts"
        )
    emit(result, json, "\n".join(lines))


def doctor_verb(json: Json = False) -> None:
    """Say which backend runs here and why, and which versions are installed."""
    try:
        if torch.cuda.is_available():
            ops.try_cuda()
        backend, cuda = ops.backend(), ops.cuda_backend()
        found: dict[str, object] = {
            "backend": backend.name,
            "isa": backend.isa,
            "reason": backend.reason,
            "library": str(backend.library) if backend.library else None,
            "cuda_backend": f"{cuda.name} ({cuda.isa}): {cuda.reason}",
        }
    except BackendUnavailable as error:
        found = {"backend": None, "reason": str(error)}
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    found |= {
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "versions": versions,
    }
    lines = [f"backend: {found['backend']} ({found.get('isa', '')}): {found['reason']}"]
    lines += [
        f"{name}: {value}"
        for name, value in found.items()
        if name in ("library", "cuda_backend", "threads", "cuda")
    ]
    lines += [f"{name} {value}" for name, value in versions.items()]
    emit(found, json, "\n".join(lines))
    raise typer.Exit(0 if found["backend"] else BROKEN)


def _density(stream: OrthoStream, name: str) -> dict[str, object]:
    entry = stream.manifest.layers[name]
    return {"kind": entry.kind, "density": entry.nnz / math.prod(entry.shape)}


def _outside(stream: OrthoStream, base: BaseStream) -> dict[str, list[int]]:
    """Parameters outside the INT4 layers that a stream changes, with their shapes."""
    entries = stream.manifest.layers.items()
    return {name: list(entry.shape) for name, entry in entries if name not in base.layers}
