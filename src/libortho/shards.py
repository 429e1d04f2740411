"""The tensors of a checkpoint directory, from its index and the headers of its shards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from libortho.errors import CheckpointError

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


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, its shape and its dtype."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def _header(file: Path) -> dict[str, Entry]:
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
                entries[name] = Entry(file, tuple(part.get_shape()), _DTYPES[kind])
            return entries
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds a {type(value).__name__}; expected a JSON object.")
    return value


def read_entries(path: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint directory by name.

    Raises:
        CheckpointError: No safetensors files, or an index that they contradict (all problems).
    """
    index = path / INDEX_FILE
    if not index.is_file():
        single = path / SINGLE_FILE
        if not single.is_file():
            raise CheckpointError(
                f"{path} has neither {INDEX_FILE} nor {SINGLE_FILE}. Expected a checkpoint saved "
                "as safetensors; convert others with transformers' save_pretrained."
            )
        return _header(single)
    placed = _json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index} has no weight_map; expected tensor name to file name.")
    problems: list[str] = []
    headers: dict[str, dict[str, Entry]] = {}
    for file in sorted({str(value) for value in placed.values()}):
        if Path(file).name != file:
            problems.append(f"the shard name {file!r} leaves the directory")
        elif not (path / file).is_file():
            problems.append(f"the shard {file} is missing")
        else:
            headers[file] = _header(path / file)
    entries: dict[str, Entry] = {}
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
