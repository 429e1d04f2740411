"""A public checkpoint on disk, read lazily: headers first, then one tensor at a time.

Anything `transformers` saves as safetensors is accepted. Nothing is kept mapped between reads: a
mapped 16 GB file counts as 16 GB of resident memory once it has been walked through.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.resources
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from libortho.errors import CheckpointError
from libortho.progress import Progress, silent

REFERENCE = "reference"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def resolve(source: str | Path) -> Path:
    """The directory that ``source`` names.

    Args:
        source: A directory, or the word ``reference`` for the checkpoint inside this package (a
            directory of that name in the working directory is written ``./reference``).

    Raises:
        CheckpointError: There is no such directory.
    """
    if str(source) == REFERENCE and not isinstance(source, Path):
        path = Path(str(importlib.resources.files("libortho"))) / REFERENCE
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"the reference checkpoint is not installed: {path} has no config.json. "
                "Reinstall libortho, or give the path of a checkpoint directory."
            )
        return path
    path = Path(source).expanduser()
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a directory. Expected a local checkpoint directory (config.json and "
            "safetensors files) or the word 'reference'; download Hub models first, for example "
            "with `hf download`."
        )
    return path.resolve()


@dataclass(frozen=True)
class _Entry:
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def _header(file: Path) -> dict[str, _Entry]:
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            entries = {}
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                part = handle.get_slice(name)
                kind = part.get_dtype()
                if kind not in _DTYPES:
                    raise CheckpointError(
                        f"{file.name}: tensor {name} has dtype {kind}, which libortho cannot "
                        f"read. Expected one of {', '.join(_DTYPES)}."
                    )
                entries[name] = _Entry(file, tuple(part.get_shape()), _DTYPES[kind])
            return entries
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds a {type(value).__name__}; expected a JSON object.")
    return value


def _entries(path: Path) -> dict[str, _Entry]:
    index = path / INDEX_FILE
    if not index.is_file():
        single = path / SINGLE_FILE
        if not single.is_file():
            raise CheckpointError(
                f"{path} has neither {INDEX_FILE} nor {SINGLE_FILE}. Expected a checkpoint saved "
                "as safetensors; convert others with transformers' save_pretrained."
            )
        return _header(single)
    placed = _read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index} has no weight_map; expected tensor name to file name.")
    problems: list[str] = []
    headers: dict[str, dict[str, _Entry]] = {}
    for file in sorted({str(value) for value in placed.values()}):
        if Path(file).name != file:
            problems.append(f"the shard name {file!r} leaves the directory")
        elif not (path / file).is_file():
            problems.append(f"the shard {file} is missing")
        else:
            headers[file] = _header(path / file)
    entries: dict[str, _Entry] = {}
    for name, file in placed.items():
        if str(file) not in headers:
            continue
        if name in headers[file]:
            entries[name] = headers[file][name]
        else:
            problems.append(f"the shard {file} lacks the tensor {name}")
    if problems:
        raise CheckpointError(f"{path} is incomplete: " + "; ".join(problems) + ".")
    return entries


class Checkpoint:
    """A checkpoint directory whose tensors are read one at a time.

    Args:
        source: What :func:`resolve` takes.

    Attributes:
        path: The directory.
        config: Its transformers configuration.

    Raises:
        CheckpointError: The directory, its configuration, an index or a shard cannot be read.
    """

    def __init__(self, source: str | Path) -> None:
        self.path = resolve(source)
        if not (self.path / "config.json").is_file():
            raise CheckpointError(
                f"{self.path} has no config.json. Expected a checkpoint directory written by "
                "transformers' save_pretrained."
            )
        try:
            self.config: Any = AutoConfig.from_pretrained(self.path)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self.path}/config.json is not understood by transformers: {error}"
            ) from error
        self._entries = _entries(self.path)

    def names(self) -> list[str]:
        """The tensor names, sorted."""
        return sorted(self._entries)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.path} has no tensor {name}.")
        return self._entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor as stored."""
        return self._entry(name).dtype

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in its stored dtype into memory of its own."""
        entry = self._entry(name)
        with safe_open(entry.file, framework="pt", device="cpu") as handle:
            # The clone lets the mapping, and the pages it made resident, go.
            tensor: Tensor = handle.get_tensor(name)
            return tensor.clone()

    def sha256(self, progress: Progress = silent) -> str:
        """sha256 over every tensor's name, dtype, shape and bytes, in the order of the names.

        How the tensors are spread over files makes no difference.
        """
        digest = hashlib.sha256()
        names = self.names()
        for done, name in enumerate(names):
            progress("hash the checkpoint", done, len(names), {"tensor": name})
            entry = self._entries[name]
            head = json.dumps([name, str(entry.dtype).removeprefix("torch."), list(entry.shape)])
            digest.update(head.encode() + b"\n")
            data = self.tensor(name).reshape(-1).view(torch.uint8)
            digest.update(data.numpy().data)
        progress("hash the checkpoint", len(names), len(names), {})
        return digest.hexdigest()

    @cached_property
    def scale_dtype(self) -> torch.dtype:
        """The dtype of INT4 scales for this checkpoint: bfloat16 for bfloat16 weights, else fp16.

        A stock runtime that loads the base in the checkpoint's own dtype then never rounds a
        scale again.
        """
        bf16 = getattr(self.config, "dtype", None) in (torch.bfloat16, "bfloat16")
        return torch.bfloat16 if bf16 else torch.float16

    def skeleton(self) -> Any:
        """The transformers model without weights: parameters on ``meta``, buffers real, float32.

        Tied parameters are one and the same object.

        Raises:
            CheckpointError: transformers has no causal language model for this configuration.
        """
        config = copy.deepcopy(self.config)  # building a model writes its dtype into the config
        try:
            with init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (ValueError, ImportError) as error:
            raise CheckpointError(
                f"{self.path} cannot be built as a causal language model: {error}"
            ) from error
        model.tie_weights()
        return model.eval()

    def tokenizer(self) -> Any:
        """The checkpoint's own tokenizer.

        Raises:
            CheckpointError: There is none, or it cannot be read.
        """
        try:
            return AutoTokenizer.from_pretrained(self.path)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.path} has no usable tokenizer: {error}") from error

    def validate(self) -> None:
        """Check, from headers alone, that the tensors are those which the model expects.

        Raises:
            CheckpointError: Weights are missing, of another shape, already quantised or not
                floating point. All of them are named.
        """
        if getattr(self.config, "quantization_config", None) is not None:
            raise CheckpointError(
                f"{self.path} is quantised already (config.json has a quantization_config). "
                "Expected the checkpoint in floating point."
            )
        problems = []
        for names, shape in _expected(self.skeleton()):
            present = [name for name in names if name in self._entries]
            if not present:
                problems.append(f"{names[0]} is missing")
            for name in present:
                entry = self._entries[name]
                if entry.shape != shape:
                    problems.append(f"{name} has shape {list(entry.shape)}, expected {list(shape)}")
                elif not entry.dtype.is_floating_point or entry.dtype.itemsize < 2:
                    problems.append(f"{name} has dtype {entry.dtype}, expected 16-bit or wider")
        if problems:
            raise CheckpointError(
                f"{self.path} does not hold the weights of {self.config.model_type}: "
                + "; ".join(problems)
                + "."
            )


def _expected(skeleton: nn.Module) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Each parameter's names (several where it is tied) and shape."""
    grouped: dict[int, tuple[list[str], tuple[int, ...]]] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        names, _ = grouped.setdefault(id(parameter), ([], tuple(parameter.shape)))
        names.append(name)
    yield from grouped.values()


def block_names(skeleton: Any) -> list[str]:
    """The decoder blocks of a model in the order of the forward, e.g. ``model.layers.0``.

    Raises:
        CheckpointError: Not exactly one list of ``num_hidden_layers`` blocks was found.
    """
    count = skeleton.config.get_text_config().num_hidden_layers
    lists = [
        name
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    # A list inside a block (experts, say) may happen to be as long as the list of blocks.
    outer = [n for n in lists if not any(n.startswith(other + ".") for other in lists)]
    if len(outer) != 1:
        raise CheckpointError(
            f"expected one list of {count} decoder blocks in {type(skeleton).__name__}, found "
            f"{outer or 'none'}. This architecture is not supported."
        )
    return [f"{outer[0]}.{index}" for index in range(count)]


def linear_layers(
    skeleton: Any, group_size: int
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Which linear layers can be stored as INT4 groups along their inputs.

    Args:
        skeleton: What :meth:`Checkpoint.skeleton` returns.
        group_size: Weights per scale; in_features must be a multiple of it.

    Returns:
        ``{layer: (out_features, in_features)}`` in the order of the forward, and
        ``{layer: reason}`` of the linear layers that stay as they are.
    """
    blocks = block_names(skeleton)
    head = skeleton.get_output_embeddings()
    owners: dict[int, str] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), name)
    layers: dict[str, tuple[int, int]] = {}
    skipped: dict[str, str] = {}
    for name, module in skeleton.named_modules():
        if type(module).__name__ == "Conv1D":
            skipped[name] = "a Conv1D, which stores its weight transposed"
        if not isinstance(module, nn.Linear):
            continue
        owner = owners[id(module.weight)]
        if module is head:
            skipped[name] = "the output embedding"
        elif owner != f"{name}.weight":
            skipped[name] = f"shares its weight with {owner.removesuffix('.weight')}"
        elif not any(name.startswith(block + ".") for block in blocks):
            skipped[name] = "outside the decoder blocks"
        elif module.in_features % group_size:
            skipped[name] = (
                f"in_features {module.in_features} is not divisible by group size {group_size}"
            )
        else:
            layers[name] = (module.out_features, module.in_features)
    return layers, skipped
