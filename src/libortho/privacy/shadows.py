"""Shadow runs: models trained on known random halves, from which an attacker learns what
membership looks like for each example (Carlini et al., arXiv 2112.03570)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from libortho.errors import ConfigError
from libortho.privacy.private_set import Example

MIN_RUNS = 16


@dataclass(frozen=True)
class Shadows:
    """Scores of the same examples by every shadow run.

    Attributes:
        nll: [runs, examples] of each completion, in nats; members first, then controls, in the
            order of the data.
        inside: [runs, examples] bool, whether the run was trained on the example.
    """

    nll: npt.NDArray[np.float64]
    inside: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Refuse what no likelihood ratio can be built on."""
        if self.inside.shape != self.nll.shape:
            raise ConfigError(f"shadows: scores {self.nll.shape}, membership {self.inside.shape}")
        check_inside(self.inside)


def check_inside(inside: npt.NDArray[np.bool_]) -> None:
    """Refuse runs that no likelihood ratio can be built on, before they are scored.

    Args:
        inside: [runs, examples], whether the run was trained on the example.

    Raises:
        ConfigError: there are too few runs, or an example is in nearly all or nearly none.
    """
    runs, examples = inside.shape
    if runs < MIN_RUNS:
        raise ConfigError(f"shadows: {runs} runs, at least {MIN_RUNS} are needed")
    times = inside.sum(axis=0)
    lacking = int(((times < 2) | (times > runs - 2)).sum())
    if lacking:
        raise ConfigError(
            f"shadows: {lacking} of {examples} examples are not at least twice in a run and "
            "twice out of one; each should be in a random half"
        )


def halves(examples: Sequence[Example], runs: int, seed: int) -> list[list[Example]]:
    """For each run the examples it is to be trained on: each is in exactly half of the runs."""
    if runs < MIN_RUNS or runs % 2:
        raise ConfigError(f"shadows: {runs} runs; expected an even number of at least {MIN_RUNS}")
    rng = np.random.default_rng(seed)
    inside = np.zeros((runs, len(examples)), dtype=bool)
    for column in range(len(examples)):
        inside[rng.permutation(runs)[: runs // 2], column] = True
    return [[one for one, taken in zip(examples, row, strict=True) if taken] for row in inside]
