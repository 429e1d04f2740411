"""Writing a base directory: the whole of it appears, or nothing does."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import (
    pack_to_int32,
)
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor

from libortho.checkpoint import Checkpoint
from libortho.errors import CheckpointError, ConfigError, NumericsError, UnsupportedLayer
from libortho.naming import expert_matrices
from libortho.progress import Progress, silent
from libortho.shards import INDEX_FILE
from libortho.streams.base import (
    BITS_STORED,
    BaseStream,
    Planned,
    base_files,
    file_sha256,
    layer_plan,
    quantization_config,
)
from libortho.streams.manifest import (
    MANIFEST_FILE,
    BaseManifest,
    Calibration,
    PublicSource,
    Quantiser,
    base_id,
)

SHARD_BYTES = 2**30

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


def write_base(
    out: str | Path,
    public: Checkpoint,
    layers: Mapping[str, tuple[int, int]],
    quantised: Iterable[QuantisedLayer],
    *,
    quantiser: Quantiser,
    skipped: Mapping[str, str],
    experts: Collection[str] = (),
    calibration: Calibration | None = None,
    progress: Progress = silent,
) -> BaseStream:
    """Write a base directory: the whole of it appears, or nothing does.

    The bytes depend on the arguments alone: no time, no path, no machine.

    Args:
        out: The directory to make; it may exist if it is empty.
        public: Where every tensor and file that is not an INT4 layer comes from.
        layers: ``{layer: (N, K)}`` of what ``quantised`` will yield, in that order.
        experts: Those of them that are matrices of experts, by name on disk.
        quantised: Consumed lazily, once the checks have passed; at most a shard is held.
        quantiser: For the manifest; its group_size shapes the files.
        skipped: ``{layer: reason}`` of the linear layers that stay as they are.
        calibration: For the manifest.
        progress: Called per layer and per file.

    Raises:
        ConfigError: ``out`` is not empty, or the disk is too small.
        NumericsError: A scale is not positive and finite, or a code is out of range.
        UnsupportedLayer: Experts would stay in floating point.
        CheckpointError: ``quantised`` does not yield the layers that were announced.
    """
    target = Path(out).expanduser().absolute()
    check_target(target)
    _check_experts(public, layers)
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
        files = {name: file_sha256(scratch / name) for name in base_files(scratch)}
        manifest = BaseManifest(
            base_id=base_id(files),
            public=PublicSource(name=public.path.name, sha256=public.sha256(progress)),
            quantiser=quantiser,
            calibration=calibration,
            layers={name: shape for name, shape in layers.items() if name not in experts},
            experts={name: shape for name, shape in layers.items() if name in experts},
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


def _check_experts(public: Checkpoint, layers: Mapping[str, tuple[int, int]]) -> None:
    """Stock transformers reads the experts of an INT4 checkpoint as INT4, or fails."""
    stacks = expert_matrices(public.skeleton(), public.naming)
    left = sorted(name for stack in stacks.values() for name in stack if name not in layers)
    if left:
        raise UnsupportedLayer(
            f"{public.path} has experts that would not be INT4, and such a base loads nowhere: "
            f"{', '.join(left[:3])} and {max(0, len(left) - 3)} more. Use quantize and tune."
        )


def _plan(
    public: Checkpoint, layers: Mapping[str, tuple[int, int]], group_size: int
) -> dict[str, Planned]:
    """Every tensor of the base in the order of writing: INT4 layers first, then the copies."""
    plan = {
        f"{_stored_stem(public, name)}.{part}": planned
        for name, (rows, columns) in layers.items()
        for part, planned in layer_plan(rows, columns, group_size, public.scale_dtype).items()
    }
    for name in _copied_names(public, layers):
        plan[name] = Planned(public.shape(name), public.dtype(name))
    return plan


def _copied_names(public: Checkpoint, layers: Mapping[str, tuple[int, int]]) -> list[str]:
    weights = {f"{_stored_stem(public, name)}.weight" for name in layers}
    return [name for name in public.names() if name not in weights]


def _stored_stem(public: Checkpoint, layer: str) -> str:
    """The name of a layer on disk, where the checkpoint has one of its own for it."""
    whole = public.naming.whole(f"{layer}.weight")
    return layer if whole is None else whole.removesuffix(".weight")


def _shards(plan: dict[str, Planned]) -> dict[str, list[str]]:
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
        stem = _stored_stem(public, layer.name)
        yield f"{stem}.weight_packed", pack_to_int32(layer.codes, BITS_STORED).contiguous()
        yield f"{stem}.weight_scale", layer.scales.contiguous()
        yield f"{stem}.weight_shape", torch.tensor(layer.codes.shape)
    missing = [name for name, _ in expected]
    if missing:
        raise CheckpointError(f"layers announced but never quantised: {', '.join(missing)}.")
    for name in _copied_names(public, layers):
        yield name, public.tensor(name)


def _check_layer(layer: QuantisedLayer, group_size: int, scale_dtype: torch.dtype) -> None:
    rows, columns = layer.codes.shape
    planned = Planned((rows, columns // group_size), scale_dtype)
    found = Planned(tuple(layer.scales.shape), layer.scales.dtype)
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
    scratch: Path, shards: Mapping[str, list[str]], plan: Mapping[str, Planned]
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
    config["quantization_config"] = quantization_config(group_size, skipped)
    _write_text(scratch / "config.json", json.dumps(config, indent=2, ensure_ascii=False))


def _check_space(target: Path, size: int) -> None:
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < size * 1.02:
        raise ConfigError(
            f"{target} needs {size / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free."
        )


def _write_text(file: Path, text: str) -> None:
    file.write_bytes((text + "\n").encode("utf-8"))
