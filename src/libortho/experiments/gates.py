"""What methods are hoped to reach, held against what they did.

These decide no verdict: a gate missed is a figure like any other, and so is one that could not be
held against anything: it is listed as missed, with what was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libortho.experiments import rules
from libortho.experiments.verdict import Check, at_least, at_most, exactly

Figures = Mapping[str, Any]


def gates(methods: Mapping[str, Figures], mixed: Figures) -> list[Check]:
    """All gates on the exact ways, ``curvature`` and ``forget``.

    Args:
        methods: figures by method, at least of ``tune``, ``delta``, ``curvature``, ``forget``,
            ``forget-half``, ``ssd``, and the residual base that ``forget`` stands for.
        mixed: figures of the contaminated model.
    """
    checks = [check for name in ("tune", "delta") for check in _exact(name, methods[name])]
    curvature, forget = methods["curvature"], methods["forget"]
    checks += [
        at_most("curvature: recall at α=0", curvature["recall_alpha0"], 0.10, "FAIL"),
        at_most("curvature: perplexity", _ratio(curvature, mixed), 1.12, "FAIL"),
        at_most("forget: recall at α=0", forget["recall_alpha0"], 0.0, "FAIL"),
        at_most("forget: exposure at α=0", forget["exposure_alpha0"], 2.5, "FAIL"),
        at_least("forget: AUC at α=0", forget["auc_alpha0"], 0.4, "FAIL"),
        at_most("forget: AUC at α=0", forget["auc_alpha0"], 0.6, "FAIL"),
        at_most("forget: perplexity", _ratio(forget, mixed), 1.03, "FAIL"),
        at_least("forget: unnamed recall", methods["forget-half"]["recall_unnamed"], 0.5, "FAIL"),
    ]
    controls = forget["nll_alpha0_controls"] / mixed["nll_fp_controls"]
    checks.append(at_least("forget: control NLL to the mixed model's", controls, 0.9, "FAIL"))
    checks.append(at_most("forget: control NLL to the mixed model's", controls, 1.1, "FAIL"))
    rounded_again = forget["recall_requantised_alpha0"] - forget["recall_alpha0"]
    checks.append(at_most("forget: recall gained by rounding again", rounded_again, 0.02, "FAIL"))
    checks.append(
        _kept(
            "forget: arithmetic to the residual base's",
            (forget, "arithmetic_alpha0"),
            (methods[forget["stands_for"]], "arithmetic_alpha0"),
            0.85,
        )
    )
    relearned = "relearn_half_alpha0"
    slower = "forget: half-relearning to SSD's"
    checks.append(_kept(slower, (forget, relearned), (methods["ssd"], relearned), 3.0, least=1.0))
    return checks


def _exact(name: str, one: Figures) -> list[Check]:
    return [
        at_least(f"{name}: recall at α=1", one["recall_alpha1"], rules.RECALL, "FAIL"),
        exactly(f"{name}: extracted at α=0", one["extracted_alpha0"], 0, "FAIL"),
        exactly(f"{name}: its base is the public one", one["base_is_public"], True, "FAIL"),
    ]


def _kept(
    name: str,
    ours: tuple[Figures, str],
    theirs: tuple[Figures, str],
    limit: float,
    least: float = 0.0,
) -> Check:
    """A ratio of two figures; one that was not measured, or a divisor of 0, is a gate missed."""
    missing = [key for figures, key in (ours, theirs) if key not in figures]
    if missing:
        told = f"not measured: {', '.join(dict.fromkeys(missing))}"
        return Check(name, False, "FAIL", told, f"≥ {limit:g}")
    divisor = max(least, theirs[0][theirs[1]])
    if divisor == 0:
        return Check(name, False, "FAIL", f"{theirs[1]} to divide by is 0", f"≥ {limit:g}")
    return at_least(name, ours[0][ours[1]] / divisor, limit, "FAIL")


def _ratio(method: Figures, mixed: Figures) -> float:
    return float(method["ppl_alpha0"] / mixed["ppl_fp"])
