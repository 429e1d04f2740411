"""What methods on a mixed model are hoped to reach, held against what they did.

These decide no verdict: the guarantee of such a method is ``measured``, and a gate missed is a
figure like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libortho.experiments.verdict import Check, at_least, at_most

Figures = Mapping[str, Any]


def gates(methods: Mapping[str, Figures], mixed: Figures) -> list[Check]:
    """All gates on ``curvature`` and ``forget``.

    Args:
        methods: figures by method, at least of ``curvature``, ``forget``, ``forget-half``, ``ssd``.
        mixed: figures of the contaminated model.
    """
    curvature, forget = methods["curvature"], methods["forget"]
    residual = methods.get("residual-4", {})
    checks = [
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
    if residual.get("arithmetic_alpha0"):
        kept = forget["arithmetic_alpha0"] / residual["arithmetic_alpha0"]
        checks.append(at_least("forget: arithmetic to the residual base's", kept, 0.85, "FAIL"))
    if "relearn_half_alpha0" in forget:
        slower = forget["relearn_half_alpha0"] / max(1.0, methods["ssd"]["relearn_half_alpha0"])
        checks.append(at_least("forget: half-relearning to SSD's", slower, 3.0, "FAIL"))
    return checks


def _ratio(method: Figures, mixed: Figures) -> float:
    return float(method["ppl_alpha0"] / mixed["ppl_fp"])
