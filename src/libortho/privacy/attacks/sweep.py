"""Scoring under a series of changes to the weights, each of which is taken back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from libortho.privacy.attacks.linears import changed_weights
from libortho.privacy.attacks.subject import (
    Figure,
    Outcome,
    Subject,
    figure,
    mean,
    proportion,
)
from libortho.privacy.roc import auc_estimate
from libortho.privacy.token_scores import token_scores

Change = Callable[[Tensor], Tensor]
"""fp32 [N, K] to fp32 [N, K]."""


def swept(subject: Subject, changes: Mapping[str, Change]) -> Outcome:
    """Score members and controls under each change of the weights, which is taken back after."""
    figures: dict[str, Figure] = {}
    raw = {}
    extracted = {}
    halves = {"members": subject.members, "controls": subject.controls}
    for level, change in changes.items():
        with changed_weights(subject.model, change):
            found = {
                name: token_scores(
                    subject.model,
                    half.encoded,
                    subject.budget.batch_size,
                    stage=level,
                    progress=subject.progress,
                )
                for name, half in halves.items()
            }
        nll = {name: [one.nll for one in scores] for name, scores in found.items()}
        exact = [one.exact for one in found["members"]]
        n = len(nll["members"]) + len(nll["controls"])
        estimate = auc_estimate(nll["members"], nll["controls"], seed=subject.seed)
        figures[f"{level}: recited"] = proportion(exact)
        figures[f"{level}: AUC"] = figure(estimate, n)
        figures[f"{level}: NLL"] = mean(nll["members"], subject.seed)
        figures[f"{level}: NLL, controls"] = mean(nll["controls"], subject.seed)
        raw[level] = nll
        extracted[level] = sum(exact)
    return Outcome(figures, raw, (), extracted)
