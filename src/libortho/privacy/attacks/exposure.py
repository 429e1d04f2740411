"""Exposure in bits: among the controls, and for our canaries among random secrets of their law."""

from __future__ import annotations

from scipy import stats

from libortho.privacy.attacks.subject import Outcome, Subject, mean
from libortho.privacy.canaries import as_canaries, candidates
from libortho.privacy.exposure import exposure_against, exposure_sampled
from libortho.privacy.statistics import TestResult


def run(subject: Subject) -> Outcome:
    """Mean rank among the controls; sampled where the law of the secrets is known.

    The test is Kolmogorov-Smirnov on sampled exposures, whose values are independent; ranks among
    one another are not, so that other data give no test here.
    """
    ours, theirs = subject.members.nll, subject.controls.nll
    others = [theirs[:i] + theirs[i + 1 :] for i in range(len(theirs))]
    ranked = {
        "members": exposure_against(ours, theirs),
        "controls": [
            exposure_against([one], rest)[0] for one, rest in zip(theirs, others, strict=True)
        ],
    }
    figures = {
        "rank": mean(ranked["members"], subject.seed),
        "rank, controls": mean(ranked["controls"], subject.seed),
    }
    if subject.kind is None or not subject.budget.candidates:
        return Outcome(figures, ranked)
    fitted: dict[str, list[float]] = {}
    counted: dict[str, list[float]] = {}
    for name, half in (("members", subject.members), ("controls", subject.controls)):
        canaries = as_canaries(half.examples[: subject.budget.sampled], subject.kind)
        drawn = [
            candidates(one, subject.budget.candidates, seed=subject.seed, kind=subject.kind)
            for one in canaries
        ]
        found = exposure_sampled(
            subject.model,
            subject.tokenizer,
            canaries,
            drawn,
            stage=f"exposure: {name}",
            progress=subject.progress,
        )
        fitted[name] = [one.skew_normal_bits for one in found]
        counted[name] = [one.empirical_bits for one in found]
    figures |= {
        "sampled": mean(fitted["members"], subject.seed),
        "sampled, controls": mean(fitted["controls"], subject.seed),
        "counted": mean(counted["members"], subject.seed),
        "counted, controls": mean(counted["controls"], subject.seed),
    }
    distance = stats.ks_2samp(fitted["members"], fitted["controls"], alternative="two-sided")
    test = TestResult("exposure", float(distance.statistic), float(distance.pvalue))
    return Outcome(figures, fitted, (test,))
