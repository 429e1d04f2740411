"""Digests of logits, by which two processes compare every bit without sharing gigabytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from libortho import ops
from libortho import progress as _progress
from libortho.errors import PairMismatch
from libortho.evaluate.inputs import Batching, Inputs, slices
from libortho.evaluate.perplexity import nll_of_logits
from libortho.progress import Progress


@dataclass(frozen=True)
class Digest:
    """Every logit of a model on some inputs, hashed batch by batch.

    Attributes:
        settings: what must agree before hashes may be compared: backend, dtype, device, threads,
            batch sizes, torch.
        hashes: by set (``windows.NAME`` or ``secrets.NAME``), the sha256 of each batch of logits
            (dtype, shape and bytes), in order.
        nll: by set, NLL of each next token in nats, [n, T - 1] float32; on padding it means
            nothing.
        tokens: positions whose logits were hashed, padding included.
    """

    settings: Mapping[str, str | int]
    hashes: Mapping[str, tuple[str, ...]]
    nll: Mapping[str, Tensor]
    tokens: int

    def write(self, path: Path) -> None:
        """Write to one safetensors file."""
        head = {"settings": self.settings, "hashes": self.hashes, "tokens": self.tokens}
        save_file(dict(self.nll), path, metadata={"digest": json.dumps(head)})

    @classmethod
    def read(cls, path: Path) -> Digest:
        """Read what ``write`` wrote."""
        with safe_open(path, framework="pt") as file:
            head = json.loads(file.metadata()["digest"])
            nll = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        hashes = {name: tuple(values) for name, values in head["hashes"].items()}
        return cls(head["settings"], hashes, nll, head["tokens"])


@torch.no_grad()
def digest(
    model: Any,
    inputs: Inputs,
    batching: Batching | None = None,
    *,
    stage: str = "digest",
    progress: Progress = _progress.silent,
) -> Digest:
    """Hash all logits of a model; the caller sets alpha.

    Equal hashes mean equal bits, which is stricter than ``torch.equal`` (0.0 and -0.0 differ).
    """
    sizes = batching or Batching.fitting(inputs, model.config.vocab_size)
    parameter = next(model.parameters())
    backend = ops.backend()
    settings: dict[str, str | int] = {
        "backend": f"{backend.name} {backend.isa}",
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        "threads": torch.get_num_threads(),
        "window_batch": sizes.windows,
        "secret_batch": sizes.secrets,
        "torch": torch.__version__,
    }
    sets: dict[str, tuple[Tensor, Tensor, int]] = {
        f"windows.{name}": (ids, torch.ones_like(ids), sizes.windows)
        for name, ids in inputs.windows.items()
    }
    for name, batch in inputs.secrets.items():
        sets[f"secrets.{name}"] = (batch.input_ids, batch.attention_mask, sizes.secrets)
    total = sum(len(slices(len(ids), size)) for ids, _, size in sets.values())
    hashes: dict[str, tuple[str, ...]] = {}
    nll: dict[str, Tensor] = {}
    done = tokens = 0
    for key in sorted(sets):
        ids, mask, size = sets[key]
        found: list[str] = []
        losses: list[Tensor] = []
        for part in slices(len(ids), size):
            rows = ids[part].to(parameter.device)
            logits = model(
                rows, attention_mask=mask[part].to(parameter.device), use_cache=False
            ).logits
            found.append(_sha256(logits))
            losses.append(nll_of_logits(logits, rows).cpu())
            done += 1
            progress(stage, done, total, {"set": key})
        hashes[key] = tuple(found)
        nll[key] = torch.cat(losses)
        tokens += ids.numel()
    return Digest(settings, hashes, nll, tokens)


def differences(ours: Digest, other: Digest) -> tuple[str, ...]:
    """Batches whose logits differ in any bit, as ``SET[batch]``; empty means identical.

    Raises:
        PairMismatch: where settings or sets differ, so that nothing could be concluded.
    """
    unlike = sorted(
        key
        for key in ours.settings.keys() | other.settings.keys()
        if ours.settings.get(key) != other.settings.get(key)
    )
    shapes = {key: len(values) for key, values in ours.hashes.items()}
    if unlike or shapes != {key: len(values) for key, values in other.hashes.items()}:
        pairs = [f"{key}: {ours.settings.get(key)}, {other.settings.get(key)}" for key in unlike]
        raise PairMismatch(
            "two digests can only be compared at equal settings and on equal sets; "
            + ("; ".join(pairs) or f"sets {sorted(ours.hashes)} and {sorted(other.hashes)}")
        )
    return tuple(
        f"{key}[{i}]"
        for key in sorted(ours.hashes)
        for i, (a, b) in enumerate(zip(ours.hashes[key], other.hashes[key], strict=True))
        if a != b
    )


def _sha256(logits: Tensor) -> str:
    contiguous = logits.detach().cpu().contiguous()
    head = f"{contiguous.dtype} {tuple(contiguous.shape)}\n".encode()
    return hashlib.sha256(head + contiguous.view(torch.uint8).numpy().tobytes()).hexdigest()
