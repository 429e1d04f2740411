"""What an attack is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from scipy import stats

from libortho import gate
from libortho.errors import ConfigError
from libortho.privacy.encode import Encoded
from libortho.privacy.exposure import FEWEST_CANDIDATES
from libortho.privacy.private_set import Example
from libortho.privacy.roc import auc_estimate, tpr_at
from libortho.privacy.shadows import Shadows
from libortho.privacy.statistics import (
    Estimate,
    TestResult,
    bootstrap_ci,
    clopper_pearson,
)
from libortho.privacy.token_scores import TokenScores
from libortho.progress import Progress, silent

FPR = 0.01


@dataclass(frozen=True)
class Half:
    """Members or controls, with what the model says about them.

    Attributes:
        examples: the rows.
        encoded: their tokens.
        tokens: their scores under the model in its present state.
    """

    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    tokens: Sequence[TokenScores]

    @property
    def nll(self) -> list[float]:
        """Of each completion, in nats."""
        return [one.nll for one in self.tokens]

    @property
    def exact(self) -> list[bool]:
        """Whether greedy decoding recites each completion."""
        return [one.exact for one in self.tokens]


@dataclass(frozen=True)
class Reference:
    """A model that never saw the data.

    Attributes:
        alpha: the gate's setting under which it never did.
        members: NLL of the members' completions, in nats.
        controls: NLL of the controls' completions, in nats.
        itself: it is the very model under attack, in the same state of its gate.
    """

    name: str
    model: Any
    alpha: gate.Setting
    members: Sequence[float]
    controls: Sequence[float]
    itself: bool = False


@dataclass(frozen=True)
class Budget:
    """How much the costly attacks may do; see the attacks for what each number means.

    Attributes:
        candidates: random secrets per canary for sampled exposure; 0 leaves ranks alone.
        sampled: members, and controls, whose exposure is sampled.
        beam_width: beams kept.
        beams: members, and controls, that beam search tries.
        relearn_steps: optimiser steps of relearning, at most.
        batch_size: examples a forward.
    """

    candidates: int = 1000
    sampled: int = 200
    beam_width: int = 32
    beams: int = 200
    relearn_steps: int = 100
    batch_size: int = 32

    @property
    def sampling(self) -> bool:
        """Whether exposure is sampled."""
        return self.candidates > 0

    def __post_init__(self) -> None:
        """Refuse, before any attack, what one of them would refuse after hours."""
        if 0 < self.candidates < FEWEST_CANDIDATES:
            raise ConfigError(
                f"candidates: expected 0 (ranks alone) or at least {FEWEST_CANDIDATES}, "
                f"found {self.candidates}"
            )


@dataclass(frozen=True)
class Subject:
    """A model in one state of its gate, and the data it is attacked for.

    The caller has set alpha, and keeps it set while attacks run.

    Attributes:
        kind: of canaries, where the data are our own; None otherwise.
        seed: of every draw and bootstrap.
    """

    model: Any
    tokenizer: Any
    members: Half
    controls: Half
    kind: str | None = None
    reference: Reference | None = None
    shadows: Shadows | None = None
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    progress: Progress = silent


@dataclass(frozen=True)
class Figure:
    """A figure with its 95% interval and the number of examples it rests on.

    Attributes:
        count: of successes, where it is a proportion.
    """

    value: float
    low: float
    high: float
    n: int
    count: int | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """For a record."""
        values: dict[str, JsonValue] = {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.n,
        }
        return values if self.count is None else values | {"count": self.count}


@dataclass(frozen=True)
class Outcome:
    """What one attack found in one state.

    Attributes:
        figures: by name, in the order they are shown.
        raw: per-example scores, or curves; JSON values.
        tests: member/control tests, two-sided, for the family that decides.
        extracted: by way of asking, how many members' secrets came out whole.
    """

    figures: Mapping[str, Figure]
    raw: Mapping[str, Any] = field(default_factory=dict)
    tests: Sequence[TestResult] = ()
    extracted: Mapping[str, int] = field(default_factory=dict)


def proportion(flags: Sequence[bool]) -> Figure:
    """Share of true flags, with its Clopper-Pearson interval."""
    count, n = sum(map(bool, flags)), len(flags)
    interval = clopper_pearson(count, n)
    return Figure(count / n, interval.low, interval.high, n, count)


def mean(values: Sequence[float], seed: int) -> Figure:
    """Mean with its bootstrap interval."""
    return figure(bootstrap_ci(values, seed=seed), len(values))


def median(values: Sequence[float], seed: int) -> Figure:
    """Median with its bootstrap interval."""
    estimate = bootstrap_ci(values, lambda s: np.median(s, axis=-1), seed=seed)
    return figure(estimate, len(values))


def figure(estimate: Estimate, n: int) -> Figure:
    """A figure from an estimate."""
    return Figure(estimate.value, estimate.interval.low, estimate.interval.high, n)


def membership(
    name: str, members: Sequence[float], controls: Sequence[float], seed: int
) -> Outcome:
    """How well a score that is lower on members tells them from controls.

    Figures: AUC; TPR at 1% FPR. The test is Mann-Whitney's, two-sided: a member that looks *less*
    familiar than a control was tampered with, and is as easy to tell.
    """
    rate = tpr_at(members, controls, FPR)
    n = len(members) + len(controls)
    caught = Figure(
        rate.estimate.value,
        rate.estimate.interval.low,
        rate.estimate.interval.high,
        rate.n,
        rate.caught,
    )
    return Outcome(
        {
            "AUC": figure(auc_estimate(members, controls, seed=seed), n),
            "TPR at 1% FPR": caught,
        },
        {"members": list(members), "controls": list(controls)},
        (rank_test(name, members, controls),),
    )


def rank_test(name: str, members: Sequence[float], controls: Sequence[float]) -> TestResult:
    """Two-sided Mann-Whitney; its statistic is the AUC."""
    ours, theirs = np.asarray(members, float), np.asarray(controls, float)
    wins: npt.NDArray[np.float64] = (ours[:, None] < theirs) + 0.5 * (ours[:, None] == theirs)
    # The normal approximation divides by the spread of the ranks, which constants do not have.
    constant = np.ptp(np.concatenate([ours, theirs])) == 0
    p = 1.0 if constant else stats.mannwhitneyu(ours, theirs, alternative="two-sided").pvalue
    return TestResult(name, float(wins.mean()), float(p))


def share_test(name: str, members: Sequence[bool], controls: Sequence[bool]) -> TestResult:
    """Two-sided Fisher's exact test of two shares; its statistic is their difference."""
    ours, theirs = sum(map(bool, members)), sum(map(bool, controls))
    table = [[ours, len(members) - ours], [theirs, len(controls) - theirs]]
    difference = ours / len(members) - theirs / len(controls)
    return TestResult(name, difference, float(stats.fisher_exact(table).pvalue))
