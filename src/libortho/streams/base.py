"""The base on disk: a stock compressed-tensors INT4 checkpoint, written and read.

Layout: ``pack-quantized``, 4 bits, symmetric, groups along the inputs. Per layer
``.weight_packed`` int32 [N, K/8] (eight codes a word, lowest bits first, code + 8),
``.weight_scale`` bfloat16 or float16 [N, K/g] and ``.weight_shape`` int64 [2]. Everything else is
copied from the public checkpoint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import (
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
from pydantic import ValidationError
from torch import Tensor

from libortho.checkpoint import Checkpoint, resolve
from libortho.errors import FormatError
from libortho.naming import Naming
from libortho.shards import INDEX_FILE
from libortho.streams.manifest import (
    MANIFEST_FILE,
    BaseManifest,
    base_id,
)

BITS_STORED = 4
PACK_FORMAT = "pack-quantized"
ORTHO_FOLDER = "ortho"
_OBSERVING = ("observer", "observer_kwargs")
_NEXT = "Make one with `libortho quantize PUBLIC -o BASE`."


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
        directory = resolve(path, f"a base. {_NEXT}")
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

    @cached_property
    def naming(self) -> Naming:
        """Which tensors the model's parameters are made of; INT4 ones as if they were whole."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.checkpoint.names():
            stem, _, part = name.rpartition(".")
            shape = self.checkpoint.shape(name)
            if part == "weight_packed":
                shapes[f"{stem}.weight"] = (shape[0], shape[1] * 32 // BITS_STORED)
            elif part not in PARTS:
                shapes[name] = shape
        return Naming(self.checkpoint.skeleton(), shapes)

    @cached_property
    def stems(self) -> dict[str, str]:
        """The name on disk of every layer and expert matrix; most models use their own."""
        experts = {name: name for name in self.manifest.experts}
        present = set(self.checkpoint.names())
        if all(f"{name}.weight_packed" in present for name in self.layers):
            return {name: name for name in self.layers} | experts
        stored = {name: self.naming.whole(f"{name}.weight") for name in self.layers}
        stems = {name: (whole or name).removesuffix(".weight") for name, whole in stored.items()}
        return stems | experts

    def _shape(self, name: str) -> tuple[int, int]:
        return self.layers.get(name) or self.manifest.experts[name]

    def packed(self, name: str) -> tuple[Tensor, Tensor]:
        """A layer as stored: int32 [N, K/8] and scales [N, K/g]."""
        stem = self.stems[name]
        return (
            self.checkpoint.tensor(f"{stem}.weight_packed"),
            self.checkpoint.tensor(f"{stem}.weight_scale"),
        )

    def codes(self, name: str) -> Tensor:
        """The codes of a layer, int8 [N, K] in [-8, 7]."""
        packed, _ = self.packed(name)
        codes: Tensor = unpack_from_int32(packed, BITS_STORED, torch.Size(self._shape(name)))
        return codes

    def scales(self, name: str) -> Tensor:
        """The scales of a layer, bfloat16 or float16 [N, K/g]."""
        return self.checkpoint.tensor(f"{self.stems[name]}.weight_scale")

    def weight(self, name: str) -> Tensor:
        """The dequantised weight codes · scale, float32 [N, K]; the product is exact."""
        return dequantise(self.codes(name), self.scales(name))

    def other_names(self) -> list[str]:
        """The tensors that are not part of an INT4 layer, sorted."""
        packed = {f"{stem}.{part}" for stem in self.stems.values() for part in PARTS}
        return [name for name in self.checkpoint.names() if name not in packed]

    def stream_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all that a stream may hold: INT4 layers, and other parameters, by name."""
        weights = {f"{name}.weight" for name in self.layers}
        others = {name: self.naming.shape(name) for name in self.naming if name not in weights}
        return {**self.layers, **others}

    def tensor(self, name: str) -> Tensor:
        """Any tensor of the directory as stored."""
        return self.checkpoint.tensor(name)

    def parameter(self, name: str) -> Tensor:
        """A parameter or buffer of the model, but for the weights of INT4 layers.

        In its stored dtype. A stack of INT4 experts has that of their scales, to which stock
        loaders round codes · scale.
        """
        return self.naming.build(name, self._stored)

    def _stored(self, tensor: str) -> Tensor:
        matrix = tensor.removesuffix(".weight")
        if matrix in self.manifest.experts:
            return self.weight(matrix).to(self.checkpoint.scale_dtype)
        return self.tensor(tensor)

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
            elif (found := file_sha256(file)) != digest:
                problems.append(f"{name} has changed: sha256 {found}, expected {digest}")
        for name in base_files(self.path):
            if name not in self.manifest.files and name != MANIFEST_FILE:
                problems.append(f"{name} is not part of the base")
        if base_id(self.manifest.files) != self.id:
            problems.append(f"base_id is not the hash of the files listed in {MANIFEST_FILE}")
        if problems:
            return problems
        for name in self.stems:
            scales = self.scales(name).float()
            if not bool((torch.isfinite(scales) & (scales > 0)).all()):
                problems.append(f"layer {name} has a scale that is not positive and finite")
        return problems

    def _configuration_problems(self) -> list[str]:
        stored: Any = getattr(self.config, "quantization_config", None)
        if not isinstance(stored, dict | None):
            stored = stored.to_dict()
        expected = quantization_config(self.group_size, self.manifest.skipped)
        problems = []
        for key in ("quant_method", "format", "ignore", "config_groups"):
            found = stored.get(key) if isinstance(stored, dict) else None
            if _meaning(found) != _meaning(expected[key]):
                problems.append(
                    f"config.json has quantization_config.{key} = {found!r}, expected "
                    f"{expected[key]!r}"
                )
        return problems

    def _header_problems(self) -> list[str]:
        problems = []
        present = set(self.checkpoint.names())
        dtype = self.checkpoint.scale_dtype
        for name in self.stems:
            rows, columns = self._shape(name)
            if columns % self.group_size:
                problems.append(f"layer {name}: {columns} inputs are not whole groups")
                continue
            for part, expected in layer_plan(rows, columns, self.group_size, dtype).items():
                tensor = f"{self.stems[name]}.{part}"
                if tensor not in present:
                    problems.append(f"the tensor {tensor} is missing")
                    continue
                found = Planned(self.checkpoint.shape(tensor), self.checkpoint.dtype(tensor))
                if found != expected:
                    problems.append(f"{tensor} is {found}, expected {expected}")
        return problems


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """codes int8 [N, K] times scales [N, K/g], float32 [N, K]; exact."""
    rows, groups = scales.shape
    weight = codes.to(torch.float32).view(rows, groups, -1)
    return (weight * scales.to(torch.float32).unsqueeze(2)).view(rows, -1)


PARTS = ("weight_packed", "weight_scale", "weight_shape")


@dataclass(frozen=True)
class Planned:
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def layer_plan(
    rows: int, columns: int, group_size: int, scale_dtype: torch.dtype
) -> dict[str, Planned]:
    words = (rows, columns * BITS_STORED // 32)
    shapes = (
        Planned(words, torch.int32),
        Planned((rows, columns // group_size), scale_dtype),
        Planned((2,), torch.int64),
    )
    return dict(zip(PARTS, shapes, strict=True))


def quantization_config(group_size: int, skipped: Mapping[str, str]) -> dict[str, Any]:
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


def _meaning(value: Any) -> Any:
    """A configuration without what releases of compressed-tensors write or leave out at will:
    values that say nothing, and how the scales were once observed."""
    if isinstance(value, dict):
        kept = {key: _meaning(part) for key, part in value.items() if key not in _OBSERVING}
        return {key: part for key, part in kept.items() if part is not None}
    return value


def _read_manifest(directory: Path) -> BaseManifest:
    file = directory / MANIFEST_FILE
    if not file.is_file():
        raise FormatError(f"{directory} has no {MANIFEST_FILE}: it is not a base. {_NEXT}")
    try:
        return BaseManifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise FormatError(f"{file} is not a valid manifest: {error}") from error


def base_files(directory: Path) -> list[str]:
    """Every file below ``directory`` as a posix path, ``ortho/`` aside, sorted."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
    return sorted(path.as_posix() for path in found if path.parts[0] != ORTHO_FOLDER)


def file_sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
