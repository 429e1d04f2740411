"""What a model says about every token of a completion: the input of most attacks, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from libortho import progress as _progress
from libortho.errors import NumericsError
from libortho.privacy.encode import Encoded, pad
from libortho.privacy.score import completion_logits
from libortho.progress import Progress

LOGITS_A_FORWARD = 2**26
"""Elements of the logits of one forward, at most: 256 MiB in float32."""

TOP_K = 40
"""The sampler of (n,p)-discoverable extraction: temperature 1 among the 40 likeliest tokens."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TokenScores:
    """Scores of one completion's tokens, given all true tokens before each; natural logarithms.

    Attributes:
        log_prob: [n] of the true token.
        mean: [n] expectation of the log-probability under the model's own distribution.
        std: [n] its standard deviation there.
        sampled: [n] log-probability of the true token under the top-k sampler; -inf outside.
        hit: [n] bool, the true token is the most likely one.
    """

    log_prob: _Floats
    mean: _Floats
    std: _Floats
    sampled: _Floats
    hit: npt.NDArray[np.bool_]

    @property
    def nll(self) -> float:
        """Minus the log-probability of the whole completion, in nats."""
        return -float(self.log_prob.sum())

    @property
    def exact(self) -> bool:
        """Greedy decoding recites the whole completion (``score.score`` says why)."""
        return bool(self.hit.all())


def rows_a_forward(model: Any, encoded: Sequence[Encoded], batch_size: int) -> int:
    """How many examples a forward takes: ``batch_size``, or what ``LOGITS_A_FORWARD`` allows."""
    longest = max(len(one.input_ids) for one in encoded)
    vocabulary: int = model.config.get_text_config().vocab_size
    return max(1, min(batch_size, LOGITS_A_FORWARD // (longest * vocabulary)))


@torch.no_grad()
def token_scores(
    model: Any,
    encoded: Sequence[Encoded],
    batch_size: int = 32,
    *,
    stage: str = "score",
    progress: Progress = _progress.silent,
) -> list[TokenScores]:
    """Score completions token by token; logits become float32 before the softmax.

    Args:
        model: a transformers causal LM; the caller sets alpha.
        encoded: what to score; batches follow its order.
        batch_size: examples a forward, at most.

    Raises:
        NumericsError: naming the examples whose log-probabilities are not finite.
    """
    device = next(model.parameters()).device
    scores: list[TokenScores] = []
    size = rows_a_forward(model, encoded, batch_size)
    for start in range(0, len(encoded), size):
        part = encoded[start : start + size]
        batch = pad(part)
        first = int(batch.prompt_lengths.min()) - 1
        logits = completion_logits(
            model, batch.input_ids.to(device), batch.attention_mask.to(device), first
        )
        targets = batch.input_ids[:, first + 1 :].to(device)
        columns = _columns(logits.float(), targets)
        for row, item in enumerate(part):
            span = slice(item.prompt_length - first - 1, len(item.input_ids) - first - 1)
            log_prob, mean, std, sampled = (column[row, span] for column in columns[:4])
            if not np.isfinite(np.stack([log_prob, mean, std])).all():
                raise NumericsError(
                    f"{stage}: log-probabilities of example {start + row} are not finite"
                )
            scores.append(TokenScores(log_prob, mean, std, sampled, columns[4][row, span] > 0))
        progress(stage, len(scores), len(encoded), {})
    return scores


def _columns(logits: Tensor, targets: Tensor) -> tuple[_Floats, ...]:
    """The five fields of ``TokenScores`` for [B, L, V] logits and [B, L] targets."""
    log_p = torch.log_softmax(logits, dim=-1)
    chosen = log_p.gather(-1, targets[..., None])[..., 0]
    p = log_p.exp()
    # Where p underflows to 0 its log may be -inf, whose product with 0 would be NaN.
    mean = torch.where(p > 0, p * log_p, 0.0).sum(-1)
    variance = torch.where(p > 0, p * (log_p - mean[..., None]) ** 2, 0.0).sum(-1)
    top = log_p.topk(min(TOP_K, log_p.shape[-1]), dim=-1).values
    inside = chosen >= top[..., -1]
    sampled = torch.where(inside, chosen - top.logsumexp(-1), -torch.inf)
    hit = log_p.argmax(-1) == targets
    fields = (chosen, mean, variance.sqrt(), sampled, hit)
    return tuple(field.double().cpu().numpy() for field in fields)
