"""What two processes both evaluate, handed over as one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from libortho.errors import ConfigError
from libortho.evaluate.perplexity import window_batch
from libortho.privacy.encode import Batch


@dataclass(frozen=True)
class Inputs:
    """Named sets of token ids.

    Attributes:
        windows: by name, [n, T] int64.
        secrets: by name, encoded completions, padded (``libortho.privacy.encode.pad``).
    """

    windows: Mapping[str, Tensor] = field(default_factory=dict)
    secrets: Mapping[str, Batch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse names that the file's keys could not be split at again."""
        bad = [name for name in (*self.windows, *self.secrets) if "." in name or not name]
        if bad or not (self.windows or self.secrets):
            raise ConfigError(f"inputs need at least one set, named without dots; found {bad}")

    def write(self, path: Path) -> None:
        """Write ``windows.NAME`` and ``secrets.NAME.{input_ids,attention_mask,prompt_lengths}``."""
        tensors = {f"windows.{name}": ids for name, ids in self.windows.items()}
        for name, batch in self.secrets.items():
            tensors[f"secrets.{name}.input_ids"] = batch.input_ids
            tensors[f"secrets.{name}.attention_mask"] = batch.attention_mask
            tensors[f"secrets.{name}.prompt_lengths"] = batch.prompt_lengths
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)

    @classmethod
    def read(cls, path: Path) -> Inputs:
        """Read what ``write`` wrote."""
        windows: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (safe_open is not a mapping)
                kind, _, rest = key.partition(".")
                if kind == "windows":
                    windows[rest] = file.get_tensor(key)
                else:
                    name, _, part = rest.partition(".")
                    parts.setdefault(name, {})[part] = file.get_tensor(key)
        return cls(windows, {name: Batch(**tensors) for name, tensors in parts.items()})


@dataclass(frozen=True)
class Batching:
    """Sequences a forward; bit-identity is promised at equal shapes only.

    Attributes:
        windows: windows a forward.
        secrets: completions a forward.
    """

    windows: int
    secrets: int = 20

    @classmethod
    def fitting(cls, inputs: Inputs, vocabulary: int) -> Batching:
        """Batches whose logits stay small for the longest window."""
        longest = max((ids.shape[1] for ids in inputs.windows.values()), default=2)
        return cls(window_batch(longest, vocabulary))


def slices(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size`` that cover ``count`` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def as_dtype(name: str) -> torch.dtype:
    """The torch dtype called ``name``.

    Raises:
        ConfigError: for another name than float32, bfloat16 or float16.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ConfigError(f"unknown dtype {name!r}; known: {', '.join(dtypes)}")
    return dtypes[name]
