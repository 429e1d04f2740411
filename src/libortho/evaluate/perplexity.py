"""Perplexity over non-overlapping windows, in float32.

The protocol of the quantisation literature (GPTQ, arXiv 2210.17323): one stream of ids cut into
windows of the model's context, the tail dropped, no sliding; the first token of a window is not
predicted; perplexity is exp of the mean NLL over all predicted tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from libortho import progress as _progress
from libortho.errors import ConfigError, NumericsError
from libortho.progress import Progress

LOGITS_A_FORWARD = 2**25
"""Elements of the logits of one forward by default: 128 MiB in float32."""


def window_batch(length: int, vocabulary: int) -> int:
    """How many windows of ``length`` one forward takes by default."""
    return max(1, LOGITS_A_FORWARD // (length * vocabulary))


@torch.no_grad()
def token_nll(
    model: Any,
    windows: Tensor,
    batch_size: int | None = None,
    *,
    stage: str = "perplexity",
    progress: Progress = _progress.silent,
) -> Tensor:
    """Minus the log-probability of every predicted token, in nats.

    Args:
        model: a transformers causal LM; the caller sets alpha.
        windows: [n, T] int64.
        batch_size: windows a forward; by default what ``LOGITS_A_FORWARD`` allows.

    Returns:
        [n, T - 1] float32 on the CPU.

    Raises:
        NumericsError: naming the windows with values that are not finite.
    """
    device = next(model.parameters()).device
    size = batch_size or window_batch(windows.shape[1], model.config.vocab_size)
    parts: list[Tensor] = []
    done = 0
    for batch in torch.split(windows, size):
        ids = batch.to(device)
        logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        nll = nll_of_logits(logits, ids)
        bad = [done + i for i in (~torch.isfinite(nll).all(dim=1)).nonzero().flatten().tolist()]
        if bad:
            raise NumericsError(f"{stage}: log-probabilities of windows {bad} are not finite")
        parts.append(nll.cpu())
        done += len(batch)
        progress(stage, done, len(windows), {"nll": float(nll.mean())})
    return torch.cat(parts)


def nll_of_logits(logits: Tensor, ids: Tensor) -> Tensor:
    """NLL of each next token: logits [B, T, V] and ids [B, T] give [B, T - 1] float32."""
    flat = logits[:, :-1].float().flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(flat, ids[:, 1:].flatten(), reduction="none")
    return nll.view(len(ids), -1)


def perplexity(nll: Tensor) -> float:
    """exp of the mean token NLL, summed in float64."""
    return math.exp(nll.double().mean().item())


def distance(nll: Tensor, other: Tensor) -> float:
    """Mean absolute difference of log-probability a token, in nats: how far two models differ.

    Raises:
        ConfigError: where the two were not taken on the same windows.
    """
    if nll.shape != other.shape:
        raise ConfigError(f"a distance needs the same tokens: {nll.shape}, {other.shape}")
    return (nll.double() - other.double()).abs().mean().item()
