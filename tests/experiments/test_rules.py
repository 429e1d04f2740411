"""The laws as rules: broken preconditions are VOID, broken promises FAIL, never PASS."""

from __future__ import annotations

import pytest

from libortho import ops
from libortho.experiments import rules
from libortho.experiments.verdict import judge

GOOD = {
    "recall_alpha1": 1.0,
    "extracted_alpha0": 0,
    "identical_alpha0": True,
    "density": 0.02,
    "ppl_fp": 30.0,
    "ppl_alpha0": 30.4,
    "ppl_repair": 30.3,
    "ppl_alpha1": 30.6,
    "ppl_pydoc_fp": 70.0,
    "ppl_pydoc_alpha1": 72.0,
    "arithmetic_alpha0": 0.9,
    "arithmetic_alpha1": 0.88,
    "distance_alpha0_int4": 1e-6,
    "distance_alpha0_fp": 0.1,
    "tolerance_log_prob": 1e-3,
    "native_op_calls": 420,
    "expected_op_calls": 420,
}


def verdict(**changed: object) -> str:
    values = GOOD | changed
    checks = rules.honest("tune", values) + rules.silent_at_0("tune", values, 0.0)
    checks.append(rules.able_at_1("tune", values))
    return judge(checks)[0]


def test_everything_held_passes() -> None:
    assert verdict() == "PASS"


@pytest.mark.parametrize(
    "changed",
    [
        {"recall_alpha1": 0.949},
        {"distance_alpha0_int4": 2e-3},
        # α = 0 ran the full model: it lies on the floating-point model, not on the base.
        {"distance_alpha0_int4": 9e-4, "distance_alpha0_fp": 1e-6},
    ],
)
def test_a_run_that_shows_nothing_is_void(changed: dict[str, float]) -> None:
    assert verdict(**changed) == "VOID"


@pytest.mark.skipif(ops.backend().name != "native", reason="counts are of the native function")
def test_calls_that_were_not_ours_make_the_run_void() -> None:
    assert verdict(native_op_calls=0) == "VOID"


@pytest.mark.parametrize(
    "changed",
    [
        {"identical_alpha0": False},
        {"extracted_alpha0": 1},
        {"ppl_alpha1": 31.0},
        {"ppl_pydoc_alpha1": 78.0},
        {"density": 0.021},
        {"arithmetic_alpha1": 0.85},
    ],
)
def test_a_broken_promise_fails(changed: dict[str, object]) -> None:
    assert verdict(**changed) == "FAIL"


def test_void_comes_before_fail() -> None:
    assert verdict(recall_alpha1=0.5, extracted_alpha0=3) == "VOID"


def test_a_tuned_model_that_does_not_recite_shows_nothing() -> None:
    assert judge(rules.tuned_model(0.9, 1.01))[0] == "VOID"
    assert judge(rules.tuned_model(1.0, 1.2))[0] == "VOID"


def test_members_that_can_be_told_from_controls_fail() -> None:
    assert judge(rules.indistinguishable({"alpha0/nll": 0.05}))[0] == "FAIL"
    assert judge(rules.indistinguishable({"alpha0/nll": 0.051}))[0] == "PASS"


def test_repair_must_be_better_than_the_base_alone() -> None:
    assert judge(rules.cheap_base(GOOD))[0] == "PASS"
    assert judge(rules.cheap_base(GOOD | {"ppl_repair": 30.41}))[0] == "FAIL"
