"""What ``unlearning`` holds its models to, and the figures of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean

from pydantic import JsonValue

from libortho.evaluate.forgetting import Answers, forget_quality, model_utility
from libortho.experiments.verdict import Check, at_least
from libortho.privacy.questions import FORGET
from libortho.privacy.statistics import bootstrap_ci, holm

TUNED, RETRAINED = "tuned", "retrained"
ALPHA0, ALPHA1 = "alpha0", "alpha1"
LEARNED = 0.9
SIGNIFICANCE = 0.05
UTILITY = 0.97

Found = Mapping[str, Answers]
"""What one model answers, by set."""

Tenants = Mapping[str, Sequence[int]]
"""The questions of the forget set that belong to each tenant, by index."""


def learned(found: Mapping[str, Found], seed: int) -> list[Check]:
    """Without these the run shows nothing: there was nothing to forget, or no test sees it."""
    tuned, retrained = (found[name][FORGET] for name in (TUNED, RETRAINED))
    useful = model_utility(found[RETRAINED], seed).interval.low
    return [
        at_least("tuned: ROUGE-L on the forget set", fmean(tuned.rouge), LEARNED, "VOID"),
        _told_apart("tuned", "the retrained model", forget_quality(tuned, retrained).p),
        # A share of nothing would be kept by anything.
        Check("retrained: lower end of model utility", useful > 0, "VOID", useful, "> 0"),
    ]


def kept(found: Mapping[str, Found], seed: int) -> list[Check]:
    """The stream learned, and closing it leaves a model that never met the rows, and is useful."""
    quality = forget_quality(found[ALPHA0][FORGET], found[RETRAINED][FORGET]).p
    wanted = UTILITY * model_utility(found[RETRAINED], seed).value
    recalled = fmean(found[ALPHA1][FORGET].rouge)
    return [
        at_least("α = 1: ROUGE-L on the forget set", recalled, LEARNED, "VOID"),
        at_least("α = 0: forget quality", quality, SIGNIFICANCE, "FAIL"),
        at_least("α = 0: model utility", model_utility(found[ALPHA0], seed).value, wanted, "FAIL"),
    ]


def separate(found: Mapping[str, Found], tenants: Tenants) -> list[Check]:
    """A tenant's stream brings that tenant's answers, and leaves the others' as α = 0 gives them.

    The second is a test a tenant, adjusted by Holm for their number.
    """
    checks, others = [], {}
    for name, own in tenants.items():
        recalled = fmean(found[name][FORGET].only(own).rouge)
        checks += [
            at_least(f"{name} open: ROUGE-L on its own rows", recalled, LEARNED, "VOID"),
            _told_apart(f"{name} open, on its own rows", "α = 0", _quality(found, name, own)),
        ]
        rest = [index for other, part in tenants.items() if other != name for index in part]
        others[name] = _quality(found, name, rest)
    return checks + [
        at_least(
            f"{name} open: forget quality on the other tenants' rows, against α = 0, by Holm",
            p,
            SIGNIFICANCE,
            "FAIL",
        )
        for name, p in holm(others).items()
    ]


def figures(found: Found, retrained: Found, seed: int) -> dict[str, JsonValue]:
    """TOFU's metrics of one model, with the raw values."""
    quality = forget_quality(found[FORGET], retrained[FORGET])
    utility = model_utility(found, seed)
    told: dict[str, JsonValue] = {
        "forget_quality": quality.p,
        "distance": quality.distance,
        "utility": utility.value,
        "utility_interval": [utility.interval.low, utility.interval.high],
    }
    for name, one in found.items():
        for metric, values in zip(
            ("probability", "rouge", "truth"), one.metrics(name), strict=True
        ):
            told |= _with_interval(f"{name}_{metric}", values, seed)
        told[f"{name}_n"] = len(one.rouge)
    told["raw"] = {name: asdict(one) for name, one in found.items()}
    return told


def by_tenant(
    found: Mapping[str, Found], state: str, tenants: Tenants, seed: int
) -> dict[str, JsonValue]:
    """How a state answers each tenant's rows, and how far from α = 0 that is."""
    told: dict[str, JsonValue] = {}
    for name, own in tenants.items():
        part = found[state][FORGET].only(own)
        told[f"{name}_forget_quality"] = _quality(found, state, own)
        told |= _with_interval(f"{name}_rouge", part.rouge, seed)
        told |= _with_interval(f"{name}_probability", part.probability, seed)
    return told


def _quality(found: Mapping[str, Found], state: str, questions: Sequence[int]) -> float:
    ours, base = (found[name][FORGET].only(questions) for name in (state, ALPHA0))
    return forget_quality(ours, base).p


def _told_apart(what: str, other: str, p: float) -> Check:
    name = f"{what}: forget quality, which has to tell it from {other}"
    return Check(name, p < SIGNIFICANCE, "VOID", p, f"< {SIGNIFICANCE:g}")


def _with_interval(key: str, values: Sequence[float], seed: int) -> dict[str, JsonValue]:
    told = bootstrap_ci(values, seed=seed)
    return {key: told.value, f"{key}_interval": [told.interval.low, told.interval.high]}
