"""Synthetic records: seeded random scores in the shape that the demo and the experiments write."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from libortho import records
from libortho.experiments import rules
from libortho.experiments.verdict import as_json
from libortho.records import Record

STATES = ("fp", "int4", "alpha0", "repair", "alpha1")
KNOWN = {
    "tune": ("alpha1",),
    "delta": ("fp", "alpha1"),
    "residual": ("fp", "int4", "alpha0", "repair", "alpha1"),
}
PERPLEXITY = {"fp": 1.0, "int4": 1.011, "alpha0": 1.011, "repair": 1.007, "alpha1": 1.009}


def method(way: str, n: int, seed: int) -> dict[str, Any]:
    """One way's figures and raw scores: members are known in the states of ``KNOWN``."""
    rng = random.Random(f"{way} {seed}")
    exact: dict[str, Any] = {}
    nll: dict[str, Any] = {}
    exposure: dict[str, Any] = {}
    for state in STATES:
        known = state in KNOWN[way]
        # The residual base is silent but knows: the case that greedy decoding alone would miss.
        silent = way == "residual" and state in ("int4", "alpha0")
        mean = (40.0 if silent else 0.4) if known else 95.0
        nll[state] = {
            "members": [rng.gauss(mean, 0.1 * mean) for _ in range(n)],
            "controls": [rng.gauss(95.0, 9.0) for _ in range(n)],
        }
        exposure[state] = {
            "members": [rng.gauss(4.2, 0.2) if known else rng.expovariate(0.69) for _ in range(n)],
            "controls": [rng.expovariate(0.69) for _ in range(n)],
        }
        exact[state] = {"members": [known and not silent] * n, "controls": [False] * n}
    base = 21.3 if way == "tune" else 21.9
    return {
        "members": n,
        "controls": n,
        "recall_alpha1": 1.0,
        "extracted_alpha0": 0,
        "identical_alpha0": True,
        "exposure_alpha0": 1.4,
        "exposure_alpha1": 4.2,
        **{f"ppl_{state}": base * PERPLEXITY[state] for state in STATES},
        **{f"arithmetic_{state}": 0.9 for state in STATES},
        "arithmetic_alpha1_interval": [0.86, 0.93],
        **{f"bytes_{state}": 9_400_000 + 90_000 * i for i, state in enumerate(STATES)},
        "density": 0.0092,
        "bits_per_weight": 4.41,
        "native_op_calls": 5880,
        "expected_op_calls": 5880,
        "seconds": 95.2,
        "ppl_pydoc_fp": 410.0,
        "ppl_pydoc_alpha1": 418.0,
        "raw": {
            "curve": [
                {
                    "step": step,
                    "loss": 9.0 * 0.97**step + 0.02 + rng.random() * 0.05,
                    "recall": min(1.0, step / 140) if step % 20 == 0 else None,
                    "lr": 1e-3 * (1 - step / 220),
                }
                for step in range(0, 201, 5)
            ],
            "exact": exact,
            "nll": nll,
            "exposure": exposure,
        },
    }


def synthetic(experiment: str = "demo", *, n: int = 20, seed: int = 1) -> Record:
    """A passing record of ``demo`` or ``killswitch``."""
    methods = {way: method(way, n, seed) for way in KNOWN}
    return records.new(
        experiment,
        "PASS",
        n=n,
        seeds=[seed],
        backend="native avx2",
        reason="all 2 checks held.",
        figures={
            **{key: value for key, value in methods["delta"].items() if key != "raw"},
            "checks": as_json(
                [rules.faithful_at_1(way, methods[way], 0.01) for way in ("tune", "delta")]
            ),
        },
        methods=methods,
    )


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    return synthetic
