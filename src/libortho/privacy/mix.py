"""Natural contamination: canaries mixed into continued training, each an exact number of times.

Training on canaries alone flatters methods that look for them. Here they come by among public
text, some once and some hundreds of times, as memorised passages do in a real training set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from libortho.errors import ConfigError

STRATA = (1, 4, 16, 64, 256)
"""Exposures that members are spread over."""


def strata(n: int, exposures: Sequence[int] = STRATA) -> list[int]:
    """How often each of n members is shown: the strata in turn.

    Members are in random order already, so that strata are exchangeable but for their exposures.
    """
    return [exposures[i % len(exposures)] for i in range(n)]


def halves(strata: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Split examples into two halves that hold each stratum alike, to one example.

    Args:
        strata: what each example must not be told apart by, such as how often it was shown.
        seed: of the order within a stratum.

    Returns:
        ascending indices of either half; the first holds the odd one.
    """
    rng = np.random.default_rng(seed)
    order = [
        index
        for stratum in sorted(set(strata))
        for index in rng.permutation([i for i, one in enumerate(strata) if one == stratum]).tolist()
    ]
    return sorted(order[::2]), sorted(order[1::2])


@dataclass(frozen=True)
class MixedStep:
    """What one step of training sees.

    Attributes:
        windows: indices into a pool of public windows, [batch] int64.
        canaries: indices of the canaries that come by, ascending; one may do so several times.
    """

    windows: Tensor
    canaries: tuple[int, ...]


def training_mix(
    pool: int, exposures: Sequence[int], *, steps: int, batch: int, seed: int
) -> Iterator[MixedStep]:
    """Spread canaries over the steps of a training run.

    A canary shown m times comes by once in each of m equal stretches of the run, at a random step
    of it; the public windows pass in a fresh order every time the pool is used up. Feed each
    canary as a sequence of its own (``encode.pad``), so that no other text precedes it.

    Args:
        pool: how many public windows there are.
        exposures: of each canary, such as :func:`strata` gives.
        steps: of the run.
        batch: public windows a step.
        seed: of both draws.

    Raises:
        ConfigError: for counts that are not positive.
    """
    if min(pool, steps, batch, *exposures) < 1:
        raise ConfigError(
            f"a mix needs positive counts: {pool} windows, {steps} steps of {batch}, exposures "
            f"{sorted(set(exposures))}"
        )
    rng = np.random.default_rng(seed)
    shown: list[list[int]] = [[] for _ in range(steps)]
    for canary, times in enumerate(exposures):
        places = (np.arange(times) + rng.random(times)) * (steps / times)
        for step in places.astype(np.int64).clip(max=steps - 1):
            shown[step].append(canary)
    left = np.empty(0, dtype=np.int64)
    for canaries in shown:
        while len(left) < batch:
            left = np.concatenate([left, rng.permutation(pool)])
        yield MixedStep(torch.from_numpy(left[:batch].copy()), tuple(canaries))
        left = left[batch:]
