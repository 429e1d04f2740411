"""Association: the same knowledge asked for in other words (``privacy.associates``)."""

from __future__ import annotations

from libortho.errors import ConfigError
from libortho.privacy.associates import associates, styles
from libortho.privacy.attacks.subject import (
    Figure,
    Outcome,
    Subject,
    figure,
    proportion,
    rank_test,
)
from libortho.privacy.canaries import as_canaries
from libortho.privacy.encode import encode
from libortho.privacy.roc import auc_estimate
from libortho.privacy.token_scores import token_scores


def run(subject: Subject) -> Outcome:
    """For each style: share recited, and the AUC of the NLL against the controls' associates.

    Raises:
        ConfigError: where the data are not our canaries, whose sentences are known.
    """
    if subject.kind is None:
        raise ConfigError("associate prompts can only be made of libortho's own canaries")
    figures: dict[str, Figure] = {}
    raw, tests, extracted = {}, [], {}
    for style in styles(subject.kind):
        nll, exact = {}, {}
        for name, half in (("members", subject.members), ("controls", subject.controls)):
            asked = associates(as_canaries(half.examples, subject.kind), subject.kind, style)
            found = token_scores(
                subject.model,
                encode(subject.tokenizer, asked),
                subject.budget.batch_size,
                stage=f"association: {style}, {name}",
                progress=subject.progress,
            )
            nll[name] = [one.nll for one in found]
            exact[name] = [one.exact for one in found]
        n = len(nll["members"]) + len(nll["controls"])
        estimate = auc_estimate(nll["members"], nll["controls"], seed=subject.seed)
        figures[f"{style}: recited"] = proportion(exact["members"])
        figures[f"{style}: AUC"] = figure(estimate, n)
        raw[style] = nll
        tests.append(rank_test(f"association, {style}", nll["members"], nll["controls"]))
        extracted[f"asked by {style}"] = sum(exact["members"])
    return Outcome(figures, raw, tests, extracted)
