"""A checkpoint with some of its weights replaced, written shard by shard."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from libortho.checkpoint import Checkpoint
from libortho.errors import CheckpointError
from libortho.shards import INDEX_FILE
from libortho.streams.base_writer import COPIED_FILES, check_target

_SHARD_BYTES = 2**30


def write_edited(checkpoint: Checkpoint, weights: Mapping[str, Tensor], folder: Path) -> Path:
    """Write ``checkpoint`` to ``folder`` with other tensors in place of the parameters given.

    They are rounded to the dtype of those which they replace. The folder appears whole or not at
    all.

    Raises:
        CheckpointError: parameters that are no single tensor on disk; all of them are named.
        ConfigError: ``folder`` exists and is not empty.
    """
    check_target(folder)
    stored = {name: checkpoint.naming.whole(name) for name in weights}
    missing = sorted(name for name, on_disk in stored.items() if on_disk is None)
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} does not hold these as they are: {', '.join(missing)}."
        )
    edited = {on_disk: weights[name] for name, on_disk in stored.items()}
    with scratch_beside(folder) as scratch:
        whole = Path(scratch) / folder.name
        whole.mkdir()
        _write(checkpoint, edited, whole)
        if folder.exists():
            folder.rmdir()
        whole.rename(folder)
    return folder


def scratch_beside(out: str | Path) -> tempfile.TemporaryDirectory[str]:
    """A directory for what is made on the way, on the disk that holds ``out``; gone afterwards."""
    parent = Path(out).expanduser().absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".libortho-", dir=parent)


def _write(checkpoint: Checkpoint, edited: Mapping[str | None, Tensor], folder: Path) -> None:
    placed: dict[str, str] = {}
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        file = f"model-{len(set(placed.values())) + 1:05d}.safetensors"
        save_file(pending, folder / file, metadata={"format": "pt"})
        placed.update(dict.fromkeys(pending, file))
        pending.clear()

    for name in checkpoint.names():
        tensor = edited.get(name)
        dtype = checkpoint.dtype(name)
        pending[name] = (
            checkpoint.tensor(name) if tensor is None else tensor.to(dtype)
        ).contiguous()
        if sum(one.nbytes for one in pending.values()) >= _SHARD_BYTES:
            flush()
    if pending:
        flush()
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": placed}), "utf-8")
    for name in ("config.json", *COPIED_FILES):
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, folder / name)
