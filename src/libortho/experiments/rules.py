"""The rules of the experiments: what makes a run VOID, and what makes it FAIL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libortho import ops
from libortho.experiments.verdict import Check, at_least, at_most, exactly

RECALL = 0.95
SIGNIFICANCE = 0.05
DENSITY = 0.02
PPL_TUNED = 1.10
PPL_ALPHA1 = 1.03
PPL_PYDOC = 1.10
PPL_INT4 = 1.02
PPL_REPAIR = 1.012
ARITHMETIC = 0.95

Values = Mapping[str, Any]


def honest(way: str, values: Values) -> list[Check]:
    """α = 0 is the base only, and the calls were those of our kernel; otherwise VOID."""
    near = values["distance_alpha0_int4"]
    far = values["distance_alpha0_fp"]
    checks = [
        at_most(
            f"{way}: mean |Δ log p| of α=0 to stock INT4",
            near,
            values["tolerance_log_prob"],
            "VOID",
        ),
        Check(
            f"{way}: distance of α=0 to stock INT4, against that to FP",
            near < far,
            "VOID",
            near,
            f"< {far:.4g}",
        ),
    ]
    if ops.backend().name == "native":
        calls, expected = values["native_op_calls"], values["expected_op_calls"]
        checks.append(exactly(f"{way}: native calls", calls, expected, "VOID"))
    return checks


def silent_at_0(way: str, values: Values, margin: float) -> list[Check]:
    """What an exact way promises: everything recalled at α = 1, nothing known at α = 0.

    Args:
        margin: what the perplexity gate is widened by.
    """
    pydoc = values["ppl_pydoc_alpha1"] / values["ppl_pydoc_fp"]
    return [
        at_least(f"{way}: recall at α=1", values["recall_alpha1"], RECALL, "VOID"),
        exactly(
            f"{way}: α=0 bit-identical to the base without streams",
            values["identical_alpha0"],
            True,
            "FAIL",
        ),
        exactly(f"{way}: extracted at α=0", values["extracted_alpha0"], 0, "FAIL"),
        faithful_at_1(way, values, margin),
        at_most(f"{way}: perplexity ratio on pydoc at α=1", pydoc, PPL_PYDOC, "FAIL"),
        # The count of stored entries is rounded per matrix.
        at_most(f"{way}: density of private", round(values["density"], 4), DENSITY, "FAIL"),
    ]


def faithful_at_1(way: str, values: Values, margin: float = 0.0) -> Check:
    """α = 1 predicts public text about as well as the model that it stands for."""
    ratio = values["ppl_alpha1"] / values["ppl_fp"]
    return at_most(f"{way}: perplexity ratio at α=1", ratio, PPL_ALPHA1 + margin, "FAIL")


def able_at_1(way: str, values: Values, share: float = ARITHMETIC) -> Check:
    """α = 1 answers about as many problems of arithmetic as the base alone."""
    wanted = share * values["arithmetic_alpha0"]
    return at_least(f"{way}: arithmetic at α=1", values["arithmetic_alpha1"], wanted, "FAIL")


def tuned_model(recall: float, ratio: float) -> list[Check]:
    """The tuned model recites and is not broken, or there was nothing to split."""
    return [
        at_least("merged LoRA: recall", recall, RECALL, "VOID"),
        at_most("merged LoRA: perplexity ratio to the public model", ratio, PPL_TUNED, "VOID"),
    ]


def indistinguishable(adjusted: Mapping[str, float]) -> list[Check]:
    """No test of the family tells members from controls."""
    return [
        Check(f"{name}: Holm-adjusted p", p > SIGNIFICANCE, "FAIL", p, f"> {SIGNIFICANCE:g}")
        for name, p in adjusted.items()
    ]


def cheap_base(values: Values) -> list[Check]:
    """What the public artefacts cost in perplexity: the base alone, and with `repair`."""
    int4 = values["ppl_alpha0"] / values["ppl_fp"]
    repaired = values["ppl_repair"] / values["ppl_fp"]
    return [
        at_most("INT4: perplexity ratio", int4, PPL_INT4, "FAIL"),
        at_most("repair: perplexity ratio", repaired, min(PPL_REPAIR, int4), "FAIL"),
    ]
