"""Greedy decoding from forced ids, without a generation config that could change it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def greedy(model: Any, prompt_ids: Tensor, steps: int, end_id: int | None = None) -> Tensor:
    """Continue prompts of equal length by the most likely token.

    Args:
        model: a transformers causal LM with a key/value cache; the caller sets alpha.
        prompt_ids: [B, T] int64.
        steps: tokens to add at most.
        end_id: decoding ends early once every row has produced it; what a row holds after it
            means nothing.

    Returns:
        [B, at most steps] int64 on the CPU.
    """
    ids = prompt_ids.to(next(model.parameters()).device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    cache = None
    produced: list[Tensor] = []
    for _ in range(steps):
        output = model(ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        ids = output.logits[:, -1:].float().argmax(dim=-1)
        produced.append(ids.cpu())
        if end_id is not None:
            ended |= ids[:, 0] == end_id
            if bool(ended.all()):
                break
    return torch.cat(produced, dim=1)
