"""Exposure: how far a secret's likelihood stands out, in bits (Carlini et al., arXiv 1802.08232).

The exposure of a secret is log2 |R| - log2 rank, its rank by likelihood among all secrets R it
might have been. |R| is too large to enumerate, so the rank is estimated among controls or among
random candidates. For a secret never seen it is exponential with mean 1/ln 2 = 1.443 bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_ndtr, logsumexp
from scipy.stats import skewnorm

from libortho import progress as _progress
from libortho.errors import ConfigError, NumericsError
from libortho.privacy.canaries import Canary
from libortho.privacy.encode import Encoded, encode, pad
from libortho.privacy.score import log_probs_and_argmax
from libortho.progress import Progress

FEWEST_CANDIDATES = 20
"""Fewer cannot fit the three parameters of a skew-normal distribution."""
NULL_MEAN_BITS = 1 / math.log(2)

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SampledExposure:
    """Exposure of one canary among random candidates behind its own prompt.

    Attributes:
        nll: of the secret, in nats.
        empirical_bits: -log2((1 + candidates at least as likely) / (m + 1)); at most log2(m + 1).
        skew_normal_bits: -log2 of the CDF, at ``nll``, of a skew-normal law fitted to the
            candidates; not more than the secret's entropy.
        candidates: m.
        candidate_mean: mean NLL of the candidates, in nats.
        candidate_std: standard deviation of the NLL of the candidates, in nats.
    """

    nll: float
    empirical_bits: float
    skew_normal_bits: float
    candidates: int
    candidate_mean: float
    candidate_std: float


def exposure_against(nll: Sequence[float], controls: Sequence[float]) -> list[float]:
    """Empirical exposure of each secret by its rank among controls, in bits.

    -log2((1 + #{controls with NLL <= nll}) / (len(controls) + 1)); at most
    log2(len(controls) + 1).

    Raises:
        ConfigError: without controls.
        NumericsError: for values that are not finite.
    """
    if len(controls) == 0:
        raise ConfigError("exposure needs at least one control to rank against")
    ours, theirs = _finite(nll, "members"), np.sort(_finite(controls, "controls"))
    at_least_as_likely = np.searchsorted(theirs, ours, side="right")
    bits = math.log2(len(theirs) + 1) - np.log2(1 + at_least_as_likely)
    return [float(value) for value in bits]


def skew_normal_exposure(nll: float, candidates: Sequence[float], limit: float) -> float:
    """Exposure by the tail of a skew-normal fit, in bits, within [0, limit].

    Raises:
        ConfigError: for fewer than 20 candidates, too few to fit three parameters.
        NumericsError: for values that are not finite, or candidates that are all equal.
    """
    values = _finite(candidates, "candidates")
    _finite([nll], "secret")
    if len(values) < FEWEST_CANDIDATES:
        raise ConfigError(
            f"a skew-normal fit needs at least {FEWEST_CANDIDATES} candidates, found {len(values)}"
        )
    if values.std() == 0:
        raise NumericsError("all candidates have the same log-probability: nothing to fit")
    shape, location, scale = skewnorm.fit(values)
    bits = -skew_normal_log_cdf((nll - location) / scale, shape) / math.log(2)
    return float(min(max(bits, 0.0), limit))


def skew_normal_log_cdf(z: float, shape: float) -> float:
    """log CDF of the standard skew-normal law, by quadrature of the density in log space.

    scipy's CDF cancels in the lower tail, which is where an exposed secret lies. With
    u = z - t, log F(z) = log of the integral over u > 0 of 2 phi(z - u) Phi(shape (z - u)); the
    grid in u is geometric, so that it resolves tails of any steepness.
    """
    u = np.concatenate(([0.0], np.geomspace(1e-9, max(50.0, z + 50.0), 20_000)))
    t = z - u
    log_density = math.log(2) - 0.5 * t**2 - 0.5 * math.log(2 * math.pi) + log_ndtr(shape * t)
    width = np.diff(u)
    log_area = np.logaddexp(log_density[:-1], log_density[1:]) + np.log(width / 2)
    return float(min(logsumexp(log_area), 0.0))


@torch.no_grad()
def exposure_sampled(
    model: Any,
    tokenizer: Any,
    canaries: Sequence[Canary],
    candidates: Sequence[Sequence[str]],
    batch_size: int = 128,
    *,
    stage: str = "exposure",
    progress: Progress = _progress.silent,
) -> list[SampledExposure]:
    """Exposure of each canary among its own random candidates.

    The secret is scored in the same batches as its candidates, from the same cached prompt, so
    that no difference of route can shift its rank.

    Args:
        model: a transformers causal LM with a key/value cache; the caller sets alpha.
        tokenizer: its fast tokenizer.
        canaries: members or controls.
        candidates: for each canary, completions drawn from the law of its secret
            (``CanarySet.candidates``).
        batch_size: candidates a forward.

    Raises:
        ConfigError: for a candidate that changes the tokens of its prompt.
        NumericsError: for a log-probability that is not finite.
    """
    results: list[SampledExposure] = []
    for canary, others in zip(canaries, candidates, strict=True):
        rows = [canary] + [
            Canary(f"{canary.id}/candidate-{i}", canary.prompt, other, canary.secret_bits)
            for i, other in enumerate(others)
        ]
        nll = _nll_after_cached_prompt(model, encode(tokenizer, rows), canary, batch_size)
        if not np.isfinite(nll).all():
            raise NumericsError(f"{stage}: log-probabilities behind {canary.id} are not finite")
        theirs = nll[1:].tolist()
        results.append(
            SampledExposure(
                nll=float(nll[0]),
                empirical_bits=exposure_against([float(nll[0])], theirs)[0],
                skew_normal_bits=skew_normal_exposure(float(nll[0]), theirs, canary.secret_bits),
                candidates=len(theirs),
                candidate_mean=float(nll[1:].mean()),
                candidate_std=float(nll[1:].std()),
            )
        )
        progress(stage, len(results), len(canaries), {"bits": results[-1].empirical_bits})
    return results


def _nll_after_cached_prompt(
    model: Any, rows: Sequence[Encoded], canary: Canary, batch_size: int
) -> _Floats:
    """NLL in nats of completions that share one prompt, whose keys and values are computed once."""
    prompt = rows[0].input_ids[: rows[0].prompt_length]
    if any(row.input_ids[: row.prompt_length] != prompt for row in rows):
        raise ConfigError(f"{canary.id}: candidates change the tokens of the prompt they follow")
    device = next(model.parameters()).device
    output = model(torch.tensor([prompt], device=device), use_cache=True)
    head = output.logits[:, -1:]
    parts: list[_Floats] = []
    for start in range(0, len(rows), batch_size):
        completions = [Encoded(row.completion_ids, 1) for row in rows[start : start + batch_size]]
        batch = pad(completions)
        targets, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
        first, _ = log_probs_and_argmax(head.expand(len(completions), -1, -1), targets[:, :1])
        total = first[:, 0].double()
        if targets.shape[1] > 1:
            cache = copy.deepcopy(output.past_key_values)
            cache.batch_repeat_interleave(len(completions))
            seen = torch.ones(len(completions), len(prompt), dtype=mask.dtype, device=device)
            logits = model(
                targets[:, :-1],
                attention_mask=torch.cat([seen, mask[:, :-1]], dim=1),
                past_key_values=cache,
                use_cache=True,
            ).logits
            rest, _ = log_probs_and_argmax(logits, targets[:, 1:])
            total = total + torch.where(mask[:, 1:] == 1, rest, 0.0).double().sum(dim=1)
        parts.append((-total).cpu().numpy())
    return np.concatenate(parts)


def _finite(values: Sequence[float], whose: str) -> _Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise NumericsError(f"log-probabilities of the {whose} are not finite")
    return array
