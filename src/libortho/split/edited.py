"""A checkpoint with some of its weights replaced, written shard by shard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from libortho.checkpoint import Checkpoint
from libortho.errors import CheckpointError
from libortho.shards import INDEX_FILE
from libortho.streams.base_writer import COPIED_FILES

_SHARD_BYTES = 2**30


def write_edited(checkpoint: Checkpoint, weights: Mapping[str, Tensor], folder: Path) -> Path:
    """Write ``checkpoint`` to ``folder`` with other tensors in place of the parameters given.

    They are rounded to the dtype of those which they replace.

    Raises:
        CheckpointError: parameters that are no single tensor on disk; all of them are named.
    """
    stored = {name: checkpoint.naming.whole(name) for name in weights}
    missing = sorted(name for name, on_disk in stored.items() if on_disk is None)
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} does not hold these as they are: {', '.join(missing)}."
        )
    edited = {on_disk: weights[name] for name, on_disk in stored.items()}
    folder.mkdir(parents=True)
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
    return folder
