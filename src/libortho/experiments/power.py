"""Power: at α = 1 a row still knows and can what it was made from, or its α = 0 shows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from libortho.experiments import rules
from libortho.experiments.separation_ways import HALF
from libortho.experiments.verdict import Check, at_least, exactly

ABILITY = 0.9
"""Least share of the arithmetic: an exact way pays for rounding, too."""

Figures = Mapping[str, Any]


def power(methods: Mapping[str, Figures], named: Sequence[int]) -> dict[str, list[Check]]:
    """The checks of every row that has a gate, by its name.

    Recall and arithmetic at α = 1 are held against those of the row that it stands for, on the
    same secrets and problems; what a row promises of its weights, against nothing at all.

    Args:
        methods: figures by row.
        named: places, among the members of a whole row, of those of ``forget-half``.
    """
    found = {}
    for name, one in methods.items():
        if "recall_alpha1" not in one:
            continue
        model = methods[one["stands_for"]]
        state = "fp" if "recall_fp" in model else "alpha0"
        exact = model["raw"]["exact"][state]["members"]
        if name == HALF:
            exact = [exact[place] for place in named]
        wanted = rules.RECALL * fmean(exact)
        checks = [at_least(f"{name}: recall at α=1", one["recall_alpha1"], wanted, "VOID")]
        if "arithmetic_alpha1" in one:
            wanted = ABILITY * model[f"arithmetic_{state}"]
            checks.append(
                at_least(f"{name}: arithmetic at α=1", one["arithmetic_alpha1"], wanted, "VOID")
            )
        found[name] = checks + _weights(name, one)
    return found


def _weights(name: str, one: Figures) -> list[Check]:
    promised = {
        "weights_beyond_fp16": "weights at α=1 beyond an fp16 difference of the contaminated ones",
        "codes_unlike": "codes at α=1 that are not the contaminated ones",
    }
    # Moves of the other rules are no powers of two, and their product with a scale is rounded.
    if one.get("made_with", {}).get("options", {}).get("rule") == "codes":
        promised["weights_unlike"] = "weights at α=1 that are not the contaminated ones bit for bit"
    return [
        exactly(f"{name}: {words}", one[key], 0, "VOID")
        for key, words in promised.items()
        if key in one
    ]
