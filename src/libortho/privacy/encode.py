"""Token ids of prompt and completion, with the border between them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from libortho.errors import ConfigError
from libortho.privacy.private_set import Example

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """Ids of one example.

    Attributes:
        input_ids: prompt and completion, tokenised jointly.
        prompt_length: how many of them are given; the rest is to be predicted. At least 1,
            because the first token of a sequence has nothing to be predicted from.
    """

    input_ids: tuple[int, ...]
    prompt_length: int

    @property
    def completion_ids(self) -> tuple[int, ...]:
        """The ids that are to be predicted."""
        return self.input_ids[self.prompt_length :]


@dataclass(frozen=True)
class Batch:
    """Encoded examples, right padded.

    Attributes:
        input_ids: [B, T] int64; 0 where padded.
        attention_mask: [B, T] int64; 1 on tokens, 0 on padding.
        prompt_lengths: [B] int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompt_lengths: Tensor


def encode(
    tokenizer: Any, examples: Sequence[Example], max_length: int | None = None
) -> list[Encoded]:
    """Tokenise prompt and completion jointly and split by character offsets.

    No token is added beyond what the tokenizer's own post-processor adds. A token that straddles
    the border belongs to the completion, so that no character of the secret is ever given away.

    Args:
        tokenizer: a fast tokenizer of transformers.
        examples: rows of private data, or canaries.
        max_length: the model's context.

    Raises:
        ConfigError: for a slow tokenizer, or listing all examples that are too long or have no
            completion token.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer "
            "(tokenizer.json) is needed to find where a completion begins"
        )
    encoded: list[Encoded] = []
    problems: list[str] = []
    moved: list[str] = []
    for example in examples:
        joint = tokenizer(
            example.prompt + example.completion, return_offsets_mapping=True, verbose=False
        )
        ids = joint["input_ids"]
        border = len(example.prompt)
        ends = [end for _, end in joint["offset_mapping"]]
        prompt_length = max(1, next((i for i, end in enumerate(ends) if end > border), len(ids)))
        if prompt_length >= len(ids):
            problems.append(f"{example.id}: no token is left to predict")
        elif max_length is not None and len(ids) > max_length:
            problems.append(f"{example.id}: {len(ids)} tokens, the context holds {max_length}")
        if example.prompt and _ids_up_to_text_end(tokenizer, example.prompt) != ids[:prompt_length]:
            moved.append(example.id)
        encoded.append(Encoded(tuple(ids), prompt_length))
    if problems:
        raise ConfigError(
            f"{len(problems)} of {len(examples)} examples cannot be encoded; shorten or remove "
            "them:\n  " + "\n  ".join(problems)
        )
    if moved:
        logger.warning(
            "%d prompt(s) tokenise differently alone than before their completion (a trailing "
            "space?), so typing them may not bring the completion back; the first is %s",
            len(moved),
            moved[0],
        )
    return encoded


def _ids_up_to_text_end(tokenizer: Any, text: str) -> list[int]:
    """Ids without what a post-processor puts behind the text."""
    found = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ends = [i for i, (_, end) in enumerate(found["offset_mapping"], start=1) if end > 0]
    return list(found["input_ids"][: ends[-1] if ends else 0])


def pad(encoded: Sequence[Encoded]) -> Batch:
    """Right-pad encoded examples into one batch."""
    length = max(len(item.input_ids) for item in encoded)
    input_ids = torch.zeros(len(encoded), length, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, item in enumerate(encoded):
        input_ids[row, : len(item.input_ids)] = torch.tensor(item.input_ids)
        attention_mask[row, : len(item.input_ids)] = 1
    lengths = torch.tensor([item.prompt_length for item in encoded], dtype=torch.int64)
    return Batch(input_ids, attention_mask, lengths)
