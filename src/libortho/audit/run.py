"""One audit: data read, attacks chosen and run, rules applied, a record made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from libortho import records
from libortho.audit.attempt import Tested, attempt, choose
from libortho.audit.data import Data, read_data
from libortho.audit.family import family
from libortho.audit.rules import checks
from libortho.audit.target import Target, open_target
from libortho.experiments.states import backend_name
from libortho.experiments.verdict import as_json, judge
from libortho.privacy.attacks.subject import Budget
from libortho.privacy.statistics import FamilyResult
from libortho.progress import Progress, silent
from libortho.records import Record

AUDIT = "audit"
ALWAYS = "greedy"
"""The attack that the power gate reads."""
REDUCED_ROWS = 40
REDUCED = Budget(candidates=200, sampled=20, beams=20, relearn_steps=40)
"""What fits into half an hour on two CPU cores with the reference model."""


def audit(
    model: str | Path,
    data: str | Path,
    *,
    controls: str | Path | None = None,
    reference: str | Path | None = None,
    shadows: str | Path | None = None,
    alphas: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    limit: int | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress = silent,
) -> Record:
    """Attack a model for private data at given alphas and judge the states that should be silent.

    Args:
        model: a directory written by libortho, whose streams are all attached, or any checkpoint
            in floating point.
        data: JSONL that it was trained on.
        controls: JSONL of the same law that it never saw; drawn where ``data`` are canaries.
        reference: a checkpoint that never saw the data; by default the model's own base where all
            its private streams are exact.
        shadows: folder of shadow runs, for LiRA.
        alphas: as on the command line (``"0"``, ``"private=1,repair=1"``); 0 and 1 by default.
        attacks: names; by default all that can be run. Greedy extraction always is.
        limit: take only so many rows of each half.
        budget: of the costly attacks.

    Returns:
        A record of experiment ``audit``: per state, per attack, figures with n and 95% interval.

    Raises:
        ConfigError: controls, a reference or shadow runs are needed and were not given, an attack
            is unknown, or the data do not fit the model.
        LibOrthoError: a file or directory cannot be read.
    """
    begin = time.monotonic()
    rows = read_data(data, controls, limit)
    target = open_target(model, alphas, device=device, dtype=dtype)
    names = None if attacks is None else dict.fromkeys([ALWAYS, *attacks])
    chosen = choose(
        None if names is None else list(names),
        target,
        rows,
        data_file=data,
        reference=reference,
        shadows=shadows,
    )
    spent = budget or Budget()
    listed = family(
        chosen.attacks,
        rows.kind,
        [state.label for state in target.judged],
        spent.candidates > 0,
    )
    tested, never = attempt(
        target,
        rows,
        chosen.attacks,
        reference=reference,
        shadows=shadows,
        budget=spent,
        seed=seed,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    found, tests = checks(
        target,
        tested,
        members=len(rows.members),
        controls=len(rows.controls),
        canaries=rows.kind is not None,
        listed=listed,
    )
    verdict, reason = judge(found)
    return records.new(
        AUDIT,
        verdict,
        n=len(rows.members),
        seeds=[seed],
        backend=backend_name() if hasattr(target.model, "ortho") else "stock transformers",
        reason=reason,
        config=_config(target, rows, chosen.attacks, spent, str(device), str(dtype)),
        figures={
            "verdict": verdict,
            "members": len(rows.members),
            "controls": len(rows.controls),
            "states": [state.label for state in target.states],
            "judged": [state.label for state in target.judged],
            "guarantees": dict(target.guarantees),
            "reference": never,
            "seconds": time.monotonic() - begin,
            "checks": as_json(found),
            "family": _family(listed, tests),
        },
        methods={one.state.label: _method(one, target) for one in tested},
        not_run=chosen.not_run,
    )


def _config(
    target: Target, rows: Data, attacks: Sequence[str], budget: Budget, device: str, dtype: str
) -> dict[str, Any]:
    return {
        "model": target.name,
        "identity": target.identity,
        "kind": rows.kind,
        "data_sha256": rows.members_sha256,
        "controls_sha256": rows.controls_sha256,
        "controls_drawn": rows.drawn,
        "attacks": list(attacks),
        "budget": asdict(budget),
        "device": device,
        "dtype": dtype.removeprefix("torch."),
    }


def _family(listed: Sequence[str], tests: FamilyResult) -> dict[str, Any]:
    return {
        "listed": list(listed),
        "statistic": {test.name: test.statistic for test in tests.results},
        "p": {test.name: test.p for test in tests.results},
        "adjusted": dict(tests.adjusted),
    }


def _method(one: Tested, target: Target) -> dict[str, Any]:
    return {
        "alpha": one.state.alpha,
        "judged": one.state in target.judged,
        "attacks": {
            name: {key: figure.as_json() for key, figure in outcome.figures.items()}
            for name, outcome in one.outcomes.items()
        },
        "raw": {name: dict(outcome.raw) for name, outcome in one.outcomes.items()},
    }
