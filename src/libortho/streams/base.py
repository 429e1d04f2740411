"""The base on disk: a stock compressed-tensors INT4 checkpoint, written and read.

Layout: ``pack-quantized``, 4 bits, symmetric, groups along the inputs. Per layer
``.weight_packed`` int32 [N, K/8] (eight codes a word, lowest bits first, code + 8),
``.weight_scale`` bfloat16 or float16 [N, K/g] and ``.weight_shape`` int64 [2]. Everything else is
copied from the public checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import (
    pack_to_int32,
    unpack_from_int32,
)
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
    QuantizationType,
)
from huggingface_hub import split_state_dict_into_shards_factory
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from libortho.checkpoint import INDEX_FILE, Checkpoint, resolve
from libortho.errors import CheckpointError, ConfigError, FormatError, NumericsError
from libortho.progress import Progress, silent
from libortho.streams.manifest import (
    MANIFEST_FILE,
    BaseManifest,
    Calibration,
    PublicSource,
    Quantiser,
    base_id,
)

BITS_STORED = 4
PACK_FORMAT = "pack-quantized"
SHARD_BYTES = 2**30
ORTHO_FOLDER = "ortho"

# Only files known by name travel: whatever else lies in the public directory stays there.
COPIED_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
)


@dataclass(frozen=True)
class QuantisedLayer:
    """One layer on its way to disk.

    Attributes:
        name: Layer name.
        codes: int8 [N, K], in [-8, 7].
        scales: [N, K/g] in the checkpoint's scale dtype, positive and finite.
        relative_error: ‖W − codes·scales‖ / ‖W‖.
    """

    name: str
    codes: Tensor
    scales: Tensor
    relative_error: float


class BaseStream:
    """A base directory, opened for reading; tensors are read one at a time.

    Attributes:
        path: The directory.
        manifest: ``libortho.json``.
        checkpoint: The same directory as a plain checkpoint (configuration, skeleton, tokenizer).
        layers: ``{layer: (out_features, in_features)}`` of the INT4 layers.
        group_size: Weights per scale.
    """

    def __init__(self, checkpoint: Checkpoint, manifest: BaseManifest) -> None:
        self.path = checkpoint.path
        self.checkpoint = checkpoint
        self.manifest = manifest
        self.layers = dict(manifest.layers)
        self.group_size = manifest.quantiser.group_size

    @classmethod
    def open(cls, path: str | Path) -> BaseStream:
        """Open a base directory and check that its headers agree with its manifest.

        Raises:
            CheckpointError: There is no such directory, or a shard cannot be read.
            FormatError: It is not a base, or its parts contradict each other (all are named).
        """
        directory = resolve(path)
        manifest = _read_manifest(directory)
        problems = []
        if base_id(manifest.files) != manifest.base_id:
            problems.append(f"base_id is not the hash of the files listed in {MANIFEST_FILE}")
        missing = [name for name in sorted(manifest.files) if not (directory / name).is_file()]
        problems += [f"{name} is missing" for name in missing]
        if INDEX_FILE not in manifest.files:
            problems.append(f"{INDEX_FILE} is not listed in {MANIFEST_FILE}")
        if problems:
            raise FormatError(f"{directory} is not a whole base: " + "; ".join(problems) + ".")
        base = cls(Checkpoint(directory), manifest)
        problems = [*base._configuration_problems(), *base._header_problems()]
        if problems:
            raise FormatError(f"{directory} contradicts itself: " + "; ".join(problems) + ".")
        return base

    @property
    def id(self) -> str:
        """The base id: streams name the base that they belong to by it."""
        return self.manifest.base_id

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.checkpoint.config

    def packed(self, name: str) -> tuple[Tensor, Tensor]:
        """A layer as stored: int32 [N, K/8] and scales [N, K/g]."""
        return (
            self.checkpoint.tensor(f"{name}.weight_packed"),
            self.checkpoint.tensor(f"{name}.weight_scale"),
        )

    def codes(self, name: str) -> Tensor:
        """The codes of a layer, int8 [N, K] in [-8, 7]."""
        packed = self.checkpoint.tensor(f"{name}.weight_packed")
        codes: Tensor = unpack_from_int32(packed, BITS_STORED, torch.Size(self.layers[name]))
        return codes

    def scales(self, name: str) -> Tensor:
        """The scales of a layer, bfloat16 or float16 [N, K/g]."""
        return self.checkpoint.tensor(f"{name}.weight_scale")

    def weight(self, name: str) -> Tensor:
        """The dequantised weight codes · scale, float32 [N, K]; the product is exact."""
        return dequantise(self.codes(name), self.scales(name))

    def other_names(self) -> list[str]:
        """The tensors that are not part of an INT4 layer, sorted."""
        packed = {f"{name}.{part}" for name in self.layers for part in _PARTS}
        return [name for name in self.checkpoint.names() if name not in packed]

    def tensor(self, name: str) -> Tensor:
        """Any tensor of the directory as stored."""
        return self.checkpoint.tensor(name)

    def verify(self) -> list[str]:
        """Recompute every sha256 and look at every scale.

        Returns:
            All problems, in words: changed, missing and extra files (``ortho/`` aside), scales
            that are not positive and finite. Empty when the base is whole.
        """
        problems = []
        for name, digest in sorted(self.manifest.files.items()):
            file = self.path / name
            if not file.is_file():
                problems.append(f"{name} is missing")
            elif (found := _sha256(file)) != digest:
                problems.append(f"{name} has changed: sha256 {found}, expected {digest}")
        for name in _files(self.path):
            if name not in self.manifest.files and name != MANIFEST_FILE:
                problems.append(f"{name} is not part of the base")
        if base_id(self.manifest.files) != self.id:
            problems.append(f"base_id is not the hash of the files listed in {MANIFEST_FILE}")
        if problems:
            return problems
        for name in self.layers:
            scales = self.scales(name).float()
            if not bool((torch.isfinite(scales) & (scales > 0)).all()):
                problems.append(f"layer {name} has a scale that is not positive and finite")
        return problems

    def _configuration_problems(self) -> list[str]:
        stored: Any = getattr(self.config, "quantization_config", None)
        if not isinstance(stored, dict | None):
            stored = stored.to_dict()
        expected = _quantization_config(self.group_size, self.manifest.skipped)
        problems = []
        for key in ("quant_method", "format", "ignore", "config_groups"):
            found = stored.get(key) if isinstance(stored, dict) else None
            if found != expected[key]:
                problems.append(
                    f"config.json has quantization_config.{key} = {found!r}, expected "
                    f"{expected[key]!r}"
                )
        return problems

    def _header_problems(self) -> list[str]:
        problems = []
        present = set(self.checkpoint.names())
        dtype = self.checkpoint.scale_dtype
        for name, (rows, columns) in self.layers.items():
            if columns % self.group_size:
                problems.append(f"layer {name}: {columns} inputs are not whole groups")
                continue
            for part, expected in _layer_plan(rows, columns, self.group_size, dtype).items():
                tensor = f"{name}.{part}"
                if tensor not in present:
                    problems.append(f"the tensor {tensor} is missing")
                    continue
                found = _Planned(self.checkpoint.shape(tensor), self.checkpoint.dtype(tensor))
                if found != expected:
                    problems.append(f"{tensor} is {found}, expected {expected}")
        return problems


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """codes int8 [N, K] times scales [N, K/g], float32 [N, K]; exact."""
    rows, groups = scales.shape
    weight = codes.to(torch.float32).view(rows, groups, -1)
    return (weight * scales.to(torch.float32).unsqueeze(2)).view(rows, -1)


def write_base(
    out: str | Path,
    public: Checkpoint,
    layers: Mapping[str, tuple[int, int]],
    quantised: Iterable[QuantisedLayer],
    *,
    quantiser: Quantiser,
    skipped: Mapping[str, str],
    calibration: Calibration | None = None,
    progress: Progress = silent,
) -> BaseStream:
    """Write a base directory: the whole of it appears, or nothing does.

    The bytes depend on the arguments alone: no time, no path, no machine.

    Args:
        out: The directory to make; it may exist if it is empty.
        public: Where every tensor and file that is not an INT4 layer comes from.
        layers: ``{layer: (N, K)}`` of what ``quantised`` will yield, in that order.
        quantised: Consumed lazily, once the checks have passed; at most a shard is held.
        quantiser: For the manifest; its group_size shapes the files.
        skipped: ``{layer: reason}`` of the linear layers that stay as they are.
        calibration: For the manifest.
        progress: Called per layer and per file.

    Raises:
        ConfigError: ``out`` is not empty, or the disk is too small.
        NumericsError: A scale is not positive and finite, or a code is out of range.
        CheckpointError: ``quantised`` does not yield the layers that were announced.
    """
    target = Path(out).expanduser().absolute()
    check_target(target)
    plan = _plan(public, layers, quantiser.group_size)
    shards = _shards(plan)
    _check_space(target, sum(entry.bytes for entry in plan.values()))
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        errors: dict[str, float] = {}
        stream = _tensors(public, layers, quantised, quantiser.group_size, errors)
        _write_shards(scratch, shards, stream, progress)
        _write_index(scratch, shards, plan)
        _write_config(scratch, public, quantiser.group_size, skipped)
        for name in COPIED_FILES:
            if (public.path / name).is_file():
                shutil.copyfile(public.path / name, scratch / name)
        files = {name: _sha256(scratch / name) for name in _files(scratch)}
        manifest = BaseManifest(
            base_id=base_id(files),
            public=PublicSource(name=public.path.name, sha256=public.sha256(progress)),
            quantiser=quantiser,
            calibration=calibration,
            layers=dict(layers),
            skipped=dict(skipped),
            relative_error=errors,
            files=files,
        )
        _write_text(scratch / MANIFEST_FILE, manifest.model_dump_json(indent=2))
        scratch.chmod(0o755)
        os.replace(scratch, target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return BaseStream.open(target)


def check_target(out: Path) -> None:
    """Raise ConfigError unless ``out`` is absent or an empty directory."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty. Choose another output directory.")


_PARTS = ("weight_packed", "weight_scale", "weight_shape")


@dataclass(frozen=True)
class _Planned:
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def _layer_plan(
    rows: int, columns: int, group_size: int, scale_dtype: torch.dtype
) -> dict[str, _Planned]:
    words = (rows, columns * BITS_STORED // 32)
    shapes = (
        _Planned(words, torch.int32),
        _Planned((rows, columns // group_size), scale_dtype),
        _Planned((2,), torch.int64),
    )
    return dict(zip(_PARTS, shapes, strict=True))


def _plan(
    public: Checkpoint, layers: Mapping[str, tuple[int, int]], group_size: int
) -> dict[str, _Planned]:
    """Every tensor of the base in the order of writing: INT4 layers first, then the copies."""
    plan = {
        f"{name}.{part}": planned
        for name, (rows, columns) in layers.items()
        for part, planned in _layer_plan(rows, columns, group_size, public.scale_dtype).items()
    }
    for name in _copied_names(public, layers):
        plan[name] = _Planned(public.shape(name), public.dtype(name))
    return plan


def _copied_names(public: Checkpoint, layers: Mapping[str, tuple[int, int]]) -> list[str]:
    weights = {f"{name}.weight" for name in layers}
    return [name for name in public.names() if name not in weights]


def _shards(plan: dict[str, _Planned]) -> dict[str, list[str]]:
    """``{file: tensor names}``, the files in the order in which they fill up."""
    split = split_state_dict_into_shards_factory(
        plan,
        get_storage_size=lambda planned: planned.bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    groups = list(split.filename_to_tensors.values())
    return {
        f"model-{index:05d}-of-{len(groups):05d}.safetensors": list(names)
        for index, names in enumerate(groups, start=1)
    }


def _tensors(
    public: Checkpoint,
    layers: Mapping[str, tuple[int, int]],
    quantised: Iterable[QuantisedLayer],
    group_size: int,
    errors: dict[str, float],
) -> Iterator[tuple[str, Tensor]]:
    expected = iter(layers.items())
    for layer in quantised:
        name, shape = next(expected, (None, None))
        if layer.name != name or tuple(layer.codes.shape) != shape:
            raise CheckpointError(
                f"got layer {layer.name} {list(layer.codes.shape)} to write, expected {name} "
                f"{shape}."
            )
        _check_layer(layer, group_size, public.scale_dtype)
        errors[layer.name] = float(f"{layer.relative_error:.4g}")
        yield f"{name}.weight_packed", pack_to_int32(layer.codes, BITS_STORED).contiguous()
        yield f"{name}.weight_scale", layer.scales.contiguous()
        yield f"{name}.weight_shape", torch.tensor(layer.codes.shape)
    missing = [name for name, _ in expected]
    if missing:
        raise CheckpointError(f"layers announced but never quantised: {', '.join(missing)}.")
    for name in _copied_names(public, layers):
        yield name, public.tensor(name)


def _check_layer(layer: QuantisedLayer, group_size: int, scale_dtype: torch.dtype) -> None:
    rows, columns = layer.codes.shape
    planned = _Planned((rows, columns // group_size), scale_dtype)
    found = _Planned(tuple(layer.scales.shape), layer.scales.dtype)
    if layer.codes.dtype != torch.int8 or found != planned:
        raise NumericsError(
            f"layer {layer.name}: codes {layer.codes.dtype} and scales {found}, expected int8 and "
            f"{planned}."
        )
    scales = layer.scales.float()
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise NumericsError(f"layer {layer.name}: a scale is not positive and finite.")
    low, high = layer.codes.aminmax()
    if int(low) < -8 or int(high) > 7:
        raise NumericsError(f"layer {layer.name}: codes in [{low}, {high}], expected [-8, 7].")


def _write_shards(
    scratch: Path,
    shards: Mapping[str, list[str]],
    stream: Iterator[tuple[str, Tensor]],
    progress: Progress,
) -> None:
    """Write each shard as soon as its last tensor has come."""
    owner = {name: file for file, names in shards.items() for name in names}
    waiting: dict[str, dict[str, Tensor]] = {file: {} for file in shards}
    for done, (name, tensor) in enumerate(stream, start=1):
        file = owner[name]
        waiting[file][name] = tensor
        progress("write the base", done, len(owner), {"tensor": name})
        if len(waiting[file]) == len(shards[file]):
            save_file(waiting.pop(file), scratch / file, metadata={"format": "pt"})
            (scratch / file).chmod(0o644)  # safetensors makes its files private to their owner


def _write_index(
    scratch: Path, shards: Mapping[str, list[str]], plan: Mapping[str, _Planned]
) -> None:
    placed = {name: file for file, names in shards.items() for name in names}
    index = {
        "metadata": {"total_size": sum(entry.bytes for entry in plan.values())},
        "weight_map": dict(sorted(placed.items())),
    }
    _write_text(scratch / INDEX_FILE, json.dumps(index, indent=2))


def _write_config(
    scratch: Path, public: Checkpoint, group_size: int, skipped: Mapping[str, str]
) -> None:
    config = json.loads((public.path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _quantization_config(group_size, skipped)
    _write_text(scratch / "config.json", json.dumps(config, indent=2, ensure_ascii=False))


def _quantization_config(group_size: int, skipped: Mapping[str, str]) -> dict[str, Any]:
    """What stock runtimes read: W4A16, symmetric, ``group_size``, all linears but ``skipped``."""
    weights = QuantizationArgs(
        num_bits=BITS_STORED,
        type=QuantizationType.INT,
        symmetric=True,
        strategy=QuantizationStrategy.GROUP,
        group_size=group_size,
    )
    config: dict[str, Any] = QuantizationConfig(
        config_groups={
            "group_0": QuantizationScheme(targets=["Linear"], weights=weights, format=PACK_FORMAT)
        },
        format=PACK_FORMAT,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=sorted(skipped),
    ).model_dump(mode="json")
    return config


def _read_manifest(directory: Path) -> BaseManifest:
    file = directory / MANIFEST_FILE
    if not file.is_file():
        raise FormatError(
            f"{directory} has no {MANIFEST_FILE}: it is not a base. Make one with "
            "`libortho quantize PUBLIC -o BASE`."
        )
    try:
        return BaseManifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise FormatError(f"{file} is not a valid manifest: {error}") from error


def _check_space(target: Path, size: int) -> None:
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < size * 1.02:
        raise ConfigError(
            f"{target} needs {size / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free."
        )


def _files(directory: Path) -> list[str]:
    """Every file below ``directory`` as a posix path, ``ortho/`` aside, sorted."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
    return sorted(path.as_posix() for path in found if path.parts[0] != ORTHO_FOLDER)


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write_text(file: Path, text: str) -> None:
    file.write_bytes((text + "\n").encode("utf-8"))
