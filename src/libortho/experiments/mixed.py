"""How a model that was taken apart looks: one set of figures for every method and baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from libortho import gate
from libortho.evaluate.arithmetic import Problem, accuracy
from libortho.evaluate.perplexity import perplexity, token_nll
from libortho.model import load
from libortho.privacy.attacks.linears import changed_weights
from libortho.privacy.attacks.relearn import relearn
from libortho.privacy.attacks.requantise import rounded
from libortho.privacy.encode import Encoded
from libortho.privacy.exposure import exposure_against
from libortho.privacy.mix import halves
from libortho.privacy.roc import auc_estimate
from libortho.privacy.score import score
from libortho.progress import Progress, silent
from libortho.streams.ortho import STREAM_FOLDER
from libortho.tune.prepare import is_base, plain_model

BITS = 4
_BATCH = 64


@dataclass(frozen=True)
class Bench:
    """What every model is asked.

    Attributes:
        members: the secrets that the contaminated model recites, and that were to be forgotten.
        exposures: how often each of the members was shown in training.
        controls: secrets of the same generator that no model has seen.
        heldout: windows for perplexity, int64 [n, T].
        problems: arithmetic.
        relearn_steps: of the relearning attack, at most; 0 leaves it out.
    """

    tokenizer: Any
    members: Sequence[Encoded]
    exposures: Sequence[int]
    controls: Sequence[Encoded]
    heldout: Tensor
    problems: Sequence[Problem]
    relearn_steps: int
    seed: int = 0

    def among(self, indices: Sequence[int]) -> Bench:
        """The same with some of the members only."""
        members = [self.members[index] for index in indices]
        return replace(self, members=members, exposures=[self.exposures[i] for i in indices])


@dataclass
class Look:
    """Figures of one model in one state, and the scores that they come from.

    Attributes:
        strata: by exposure, how many members were shown so often, and how many are recited.
    """

    values: dict[str, float]
    strata: dict[int, tuple[int, int]]
    nll: tuple[list[float], list[float]]
    exact: tuple[list[int], list[int]]


def opened(path: Path, device: str | torch.device) -> tuple[Any, dict[str, gate.Setting]]:
    """A model directory, ours or plain, and the states that it has: α = 1 opens ``private``."""
    if not is_base(path):
        return plain_model(path, device), {"fp": 0.0}
    streams = sorted(entry.name for entry in (path / STREAM_FOLDER).glob("*"))
    states: dict[str, gate.Setting] = {"alpha0": 0.0}
    if streams:
        states["alpha1"] = {"private": 1.0}
    return load(path, streams, device=device), states


def look(
    model: Any,
    bench: Bench,
    *,
    attacked: bool,
    stage: str = "look",
    progress: Progress = silent,
) -> Look:
    """Recall, likelihood, exposure, perplexity and arithmetic; attacks on the weights on demand.

    Args:
        model: in the state that the caller has opened.
        attacked: round the weights again, and relearn half of the members.
    """
    ours, theirs = (
        score(model, ones, _BATCH, stage=f"{stage}: {which}", progress=progress)
        for which, ones in (("members", bench.members), ("controls", bench.controls))
    )
    nll = [one.nll for one in ours], [one.nll for one in theirs]
    auc = auc_estimate(*nll, seed=bench.seed)
    values = {
        "extracted": sum(one.exact for one in ours),
        "recall": fmean(one.exact for one in ours),
        "nll": fmean(nll[0]),
        "nll_controls": fmean(nll[1]),
        "exposure": fmean(exposure_against(*nll)),
        "auc": auc.value,
        "auc_low": auc.interval.low,
        "auc_high": auc.interval.high,
        "ppl": perplexity(
            token_nll(model, bench.heldout, stage=f"{stage}: text", progress=progress)
        ),
    }
    if bench.problems:
        found = accuracy(model, bench.tokenizer, bench.problems, progress=progress)
        values["arithmetic"] = found.value
    if attacked:
        values |= _attacked(model, bench, stage, progress)
    exact = [int(one.exact) for one in ours], [int(one.exact) for one in theirs]
    return Look(values, by_exposure(exact[0], bench.exposures), nll, exact)


def by_exposure(flags: Sequence[int], exposures: Sequence[int]) -> dict[int, tuple[int, int]]:
    """By exposure: how many of the examples have their flag set, and how many there are."""
    shown = list(zip(flags, exposures, strict=True))
    return {
        times: (sum(flag for flag, one in shown if one == times), exposures.count(times))
        for times in sorted(set(exposures))
    }


def _attacked(model: Any, bench: Bench, stage: str, progress: Progress) -> dict[str, float]:
    with changed_weights(model, partial(rounded, bits=BITS)):
        scores = score(model, bench.members, stage=f"{stage}: rounded again", progress=progress)
    values = {"recall_requantised": fmean(one.exact for one in scores)}
    if bench.relearn_steps:
        shown, unseen = (
            [bench.members[index] for index in half] for half in halves(bench.exposures, bench.seed)
        )
        found = relearn(
            model,
            shown,
            unseen,
            steps=bench.relearn_steps,
            seed=bench.seed,
            batch_size=_BATCH,
            stage=f"{stage}: relearn",
            progress=progress,
        )
        values["relearn_half"] = float(median(found.first))
        values["relearn_unseen"] = max(found.unseen)
    return values
