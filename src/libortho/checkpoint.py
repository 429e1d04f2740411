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
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from libortho.errors import CheckpointError
from libortho.naming import Naming
from libortho.progress import Progress, silent
from libortho.shards import Entry, read_entries

REFERENCE = "reference"
_A_CHECKPOINT = (
    "a local checkpoint directory (config.json and safetensors files) or the word 'reference'; "
    "download Hub models first, for example with `hf download`."
)


def resolve(source: str | Path, expected: str = _A_CHECKPOINT) -> Path:
    """The directory that ``source`` names.

    Args:
        source: A directory, or the word ``reference`` for the checkpoint inside this package (a
            directory of that name in the working directory is written ``./reference``).
        expected: what the error asks for.

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
        raise CheckpointError(f"{path} is not a directory. Expected {expected}")
    return path.resolve()


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
        self._entries = read_entries(self.path)

    def names(self) -> list[str]:
        """The tensor names, sorted."""
        return sorted(self._entries)

    def _entry(self, name: str) -> Entry:
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

    @cached_property
    def naming(self) -> Naming:
        """Which of these tensors each parameter of the model is made of."""
        shapes = {name: entry.shape for name, entry in self._entries.items()}
        return Naming(self.skeleton(), shapes)

    def parameter(self, name: str) -> Tensor:
        """A parameter or buffer of the model, in its stored dtype.

        Raises:
            CheckpointError: No tensor on disk makes it.
        """
        if name not in self.naming:
            raise CheckpointError(f"{self.path} has no tensor {name}.")
        return self.naming.build(name, self.tensor)

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

    @property
    def context(self) -> int | None:
        """The longest sequence that the model takes, in tokens; None where it sets no limit."""
        context: int | None = getattr(
            self.config.get_text_config(), "max_position_embeddings", None
        )
        return context

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
        if hasattr(config, "quantization_config"):
            del config.quantization_config
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
        for names, shape in parameter_names(self.skeleton()):
            present = [name for name in names if name in self.naming]
            if not present:
                problems.append(f"{names[0]} is missing")
            for name in present:
                if self.naming.shape(name) != shape:
                    found = list(self.naming.shape(name))
                    problems.append(f"{name} has shape {found}, expected {list(shape)}")
                    continue
                for part in self.naming.parts(name):
                    dtype = self.dtype(part)
                    if not dtype.is_floating_point or dtype.itemsize < 2:
                        problems.append(f"{part} has dtype {dtype}, expected 16-bit or wider")
        if problems:
            raise CheckpointError(
                f"{self.path} does not hold the weights of {self.config.model_type}: "
                + "; ".join(problems)
                + "."
            )


def parameter_names(skeleton: nn.Module) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Each parameter's names (several where it is tied) and shape, in the order of the model."""
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
    decoder = skeleton.get_decoder()
    lists = [
        name
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    # Beside a vision tower, say, only the text decoder counts.
    inside = [n for n, module in skeleton.named_modules() if module is decoder]
    if inside and inside[0]:
        lists = [name for name in lists if name.startswith(f"{inside[0]}.")]
    # A list inside a block (experts, say) may happen to be as long as the list of blocks.
    outer = [n for n in lists if not any(n.startswith(other + ".") for other in lists)]
    if len(outer) != 1:
        raise CheckpointError(
            f"expected one list of {count} decoder blocks in {type(skeleton).__name__}, found "
            f"{outer or 'none'}. This architecture is not supported."
        )
    return [f"{outer[0]}.{index}" for index in range(count)]


def linear_layers(
    skeleton: Any, group_size: int, naming: Naming | None = None
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Which linear layers can be stored as INT4 groups along their inputs.

    Args:
        skeleton: What :meth:`Checkpoint.skeleton` returns.
        group_size: Weights per scale; in_features must be a multiple of it.
        naming: Where the weights come from; None takes every weight to be stored as it is.

    Returns:
        ``{layer: (out_features, in_features)}`` in the order of the forward, and
        ``{layer: reason}`` of the linear layers, and of other matrices inside the decoder blocks
        (fused experts, routers), that stay as they are.
    """
    blocks = block_names(skeleton)
    head = skeleton.get_output_embeddings()
    owners: dict[int, str] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), name)
    layers: dict[str, tuple[int, int]] = {}
    skipped: dict[str, str] = {}
    for name, module in skeleton.named_modules():
        inside = any(name.startswith(block + ".") for block in blocks)
        if type(module).__name__ == "Conv1D":
            skipped[name] = "a Conv1D, which stores its weight transposed"
        elif not isinstance(module, nn.Linear) and inside and (kind := _matrices(module)):
            skipped[name] = kind
        if not isinstance(module, nn.Linear):
            continue
        owner = owners[id(module.weight)]
        if module is head:
            skipped[name] = "the output embedding"
        elif owner != f"{name}.weight":
            skipped[name] = f"shares its weight with {owner.removesuffix('.weight')}"
        elif not inside:
            skipped[name] = "outside the decoder blocks"
        elif naming is not None and naming.whole(f"{name}.weight") is None:
            skipped[name] = "made of other tensors on disk: " + ", ".join(
                naming.parts(f"{name}.weight")
            )
        elif module.in_features % group_size:
            skipped[name] = (
                f"in_features {module.in_features} is not divisible by group size {group_size}"
            )
        else:
            layers[name] = (module.out_features, module.in_features)
    return layers, skipped


def _matrices(module: nn.Module) -> str | None:
    """What a module that is no linear layer holds, if it holds matrices of its own."""
    ranks = [parameter.dim() for parameter in module.parameters(recurse=False)]
    kind = type(module).__name__
    if max(ranks, default=0) > 2:
        return f"a stack of matrices ({kind}), no linear layer"
    return f"a matrix inside {kind}, no linear layer" if 2 in ranks else None
