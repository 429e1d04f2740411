"""Text sampled from the reference model: what quantisation and replay read on every machine.

Each document starts after ``<|endoftext|>`` and one word token drawn uniformly: without that word
nearly every sample is arithmetic, because most training documents are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .documents import SEPARATOR, compress, read_documents, write_atomically
from .progress import Progress, silent

_WORD = re.compile(r"Ġ[A-Za-z]{2,}")


@dataclass(frozen=True)
class SampleOptions:
    """How much text is sampled.

    Attributes:
        calibration_tokens: sampled tokens of ``calibration.txt.xz``, at least.
        heldout_tokens: sampled tokens of ``heldout.txt.xz``, at least.
        bytes_limit: both compressed files together; calibration gives up documents to keep it.
        batch: sequences sampled at once (changing it changes the samples).
        seed: of the calibration text; the held-out text is sampled from ``seed + 1``.
    """

    calibration_tokens: int = 1_500 * 512
    heldout_tokens: int = 66_000
    bytes_limit: int = 1_000_000
    batch: int = 256
    seed: int = 0


def word_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of tokens that are a space and at least two ASCII letters, sorted."""
    return sorted(i for token, i in tokenizer.get_vocab().items() if _WORD.fullmatch(token))


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer whose room doubles: growing by a token copies no earlier one."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        before = self.get_seq_length() if self.is_initialized else 0
        after = before + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self._room = key_states.new_empty(0)
            self.is_initialized = True
        if not before or after > self._room.shape[-2]:
            rows, heads, _length, width = key_states.shape
            room = key_states.new_empty(2, rows, heads, 2 * after, width)
            if before:
                room[0, :, :, :before], room[1, :, :, :before] = self.keys, self.values
            self._room = room
        self._room[0, :, :, before:after] = key_states
        self._room[1, :, :, before:after] = value_states
        self.keys, self.values = self._room[0, :, :, :after], self._room[1, :, :, :after]
        return self.keys, self.values


@torch.inference_mode()
def sample_ids(
    model: Any, starts: Tensor, end: int, length: int, generator: torch.Generator
) -> Tensor:
    """Sample from the model's own distribution (T = 1, nothing cut off) with a key-value cache.

    Args:
        model: a causal LM in float32.
        starts: int64 [rows, n], the ids every row begins with.
        end: id that ends a row; the rest of the row is filled with it.
        length: tokens a row has at most, `starts` included.
        generator: on the model's device.

    Returns:
        int64 [rows, at most length].
    """
    rows, cache = [starts], Cache(layer_class_to_replicate=_RoomyLayer)
    ended = torch.zeros(len(starts), dtype=torch.bool, device=starts.device)
    step = starts
    for _ in range(length - starts.shape[1]):
        out = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        chances = out.logits[:, -1].float().softmax(-1)
        step = torch.multinomial(chances, 1, generator=generator)
        step[ended] = end
        rows.append(step)
        ended |= step[:, 0] == end
        if ended.all():
            break
    return torch.cat(rows, 1)


def sample_documents(
    model: Any,
    tokenizer: Tokenizer,
    tokens: int,
    seed: int,
    batch: int,
    progress: Progress = silent,
    stage: str = "sample",
) -> list[str]:
    """Sample whole batches of documents until they hold at least `tokens` sampled tokens.

    A document ends where the model ends it, at the latest when the model's context is full.
    """
    device = model.device
    generator = torch.Generator(device).manual_seed(seed)
    words = torch.tensor(word_tokens(tokenizer), device=device)
    end = tokenizer.token_to_id(SEPARATOR)
    documents: list[str] = []
    done = 0
    while done < tokens:
        drawn = torch.randint(len(words), (batch,), device=device, generator=generator)
        starts = torch.stack([torch.full_like(drawn, end), words[drawn]], 1)
        context = model.config.max_position_embeddings
        for row in sample_ids(model, starts, end, context, generator).tolist():
            body = row[1:]
            body = body[: body.index(end)] if end in body else body
            done += len(body)
            documents.append(tokenizer.decode(body))
        progress(stage, min(done, tokens), tokens, {"documents": len(documents)})
    return [text for text in documents if SEPARATOR not in text]


def longest_prefix(documents: Sequence[str], limit: int) -> bytes:
    """Compress as many leading documents as fit into `limit` bytes."""
    low, high = 0, len(documents)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if len(compress(documents[:middle])) <= limit else (low, middle - 1)
        )
    if not low:
        raise ValueError(f"not one of {len(documents)} sampled documents fits into {limit} bytes")
    return compress(documents[:low])


def write_samples(
    model: Any,
    tokenizer: Tokenizer,
    folder: Path,
    options: SampleOptions | None = None,
    progress: Progress = silent,
) -> dict[str, dict[str, object]]:
    """Sample ``calibration.txt.xz`` and ``heldout.txt.xz`` into a folder.

    Returns:
        Per file name its seed, bytes, documents, tokens after re-tokenising, and sha256.
    """
    options = options or SampleOptions()
    heldout_seed = options.seed + 1
    heldout = compress(
        sample_documents(
            model,
            tokenizer,
            options.heldout_tokens,
            heldout_seed,
            options.batch,
            progress,
            "held-out text",
        )
    )
    documents = sample_documents(
        model,
        tokenizer,
        options.calibration_tokens,
        options.seed,
        options.batch,
        progress,
        "calibration text",
    )
    calibration = longest_prefix(documents, options.bytes_limit - len(heldout))
    files = {
        "calibration.txt.xz": (options.seed, calibration),
        "heldout.txt.xz": (heldout_seed, heldout),
    }
    return {
        name: _write(folder / name, seed, data, tokenizer) for name, (seed, data) in files.items()
    }


def _write(path: Path, seed: int, data: bytes, tokenizer: Tokenizer) -> dict[str, object]:
    write_atomically(path, data)
    documents = read_documents(path)
    return {
        "seed": seed,
        "bytes": len(data),
        "documents": len(documents),
        "tokens": sum(len(e.ids) for e in tokenizer.encode_batch(documents)),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
