"""Log-probability of completions, and whether greedy decoding would recite them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from libortho import progress as _progress
from libortho.errors import NumericsError
from libortho.privacy.encode import Encoded, pad
from libortho.progress import Progress


@dataclass(frozen=True)
class Score:
    """How well a model predicts one completion, teacher forced.

    Attributes:
        nll: minus the log-probability of the whole completion, in nats.
        tokens: length of the completion.
        exact: greedy decoding from the prompt recites the whole completion.
        argmax_matches: positions of the completion where the most likely token is the true one.
    """

    nll: float
    tokens: int
    exact: bool
    argmax_matches: int


@torch.no_grad()
def score(
    model: Any,
    encoded: Sequence[Encoded],
    batch_size: int = 32,
    *,
    stage: str = "score",
    progress: Progress = _progress.silent,
) -> list[Score]:
    """Score completions under a causal language model.

    Logits become float32 before the softmax, and only positions from the earliest completion on
    go through the head where the model allows it. ``exact`` needs no decoding: if the argmax at
    every completion position, given the true ids before it, is the true id, then greedy decoding
    meets those same ids one after another, by induction; and if it fails at one position first,
    greedy decoding leaves the completion there. (A near-tie may fall the other way when decoding
    one token at a time, because shapes differ.)

    Args:
        model: a transformers causal LM; the caller sets alpha.
        encoded: what to score; batches follow its order.
        batch_size: examples a forward.

    Raises:
        NumericsError: naming the examples whose log-probability is not finite.
    """
    device = next(model.parameters()).device
    scores: list[Score] = []
    for start in range(0, len(encoded), batch_size):
        batch = pad(encoded[start : start + batch_size])
        first = int(batch.prompt_lengths.min()) - 1
        logits = completion_logits(
            model, batch.input_ids.to(device), batch.attention_mask.to(device), first
        )
        targets = batch.input_ids[:, first + 1 :].to(device)
        log_probs, argmax = log_probs_and_argmax(logits, targets)
        position = torch.arange(first + 1, batch.input_ids.shape[1])
        wanted = (position >= batch.prompt_lengths[:, None]) & (
            batch.attention_mask[:, first + 1 :] == 1
        )
        wanted = wanted.to(device)
        # Padding is excluded by selection: a product with 0 would let a NaN through.
        nll = -torch.where(wanted, log_probs, 0.0).double().sum(dim=1)
        tokens = wanted.sum(dim=1)
        matches = ((argmax == targets) & wanted).sum(dim=1)
        bad = [start + i for i in (~torch.isfinite(nll)).nonzero().flatten().tolist()]
        if bad:
            raise NumericsError(f"{stage}: log-probabilities of examples {bad} are not finite")
        for loss, n, hits in zip(nll.tolist(), tokens.tolist(), matches.tolist(), strict=True):
            scores.append(Score(loss, n, hits == n, hits))
        progress(stage, len(scores), len(encoded), {})
    return scores


def completion_logits(model: Any, input_ids: Tensor, attention_mask: Tensor, first: int) -> Tensor:
    """Logits that predict positions ``first + 1`` onwards: [B, T - first - 1, V]."""
    length = input_ids.shape[1]
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        keep = torch.arange(first, length - 1, device=input_ids.device)
        output = model(
            input_ids, attention_mask=attention_mask, logits_to_keep=keep, use_cache=False
        )
        return output.logits  # type: ignore[no-any-return]
    output = model(input_ids, attention_mask=attention_mask, use_cache=False)
    return output.logits[:, first:-1]  # type: ignore[no-any-return]


def log_probs_and_argmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target in float32, and the most likely id.

    Args:
        logits: [B, L, V] in any floating dtype.
        targets: [B, L] int64.

    Returns:
        [B, L] float32 and [B, L] int64.
    """
    flat = logits.flatten(0, 1).float()
    nll = torch.nn.functional.cross_entropy(flat, targets.flatten(), reduction="none")
    return -nll.view_as(targets), flat.argmax(dim=-1).view_as(targets)
