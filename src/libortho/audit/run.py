"""One audit: data read, attacks chosen and run, rules applied, a record made."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from libortho import records
from libortho.audit.attempt import Tested, attempt, score
from libortho.audit.choose import Chosen, choose
from libortho.audit.data import Data, read_data
from libortho.audit.family import family
from libortho.audit.parts import Parts
from libortho.audit.reference import Other, open_reference, positive_recall
from libortho.audit.rules import findings, power, preconditions
from libortho.audit.shadow_runs import ShadowRuns, open_shadows
from libortho.audit.target import Target, open_target
from libortho.errors import ConfigError
from libortho.experiments.states import backend_name
from libortho.experiments.verdict import as_json, judge
from libortho.privacy.attacks.subject import Budget
from libortho.privacy.encode import encode
from libortho.privacy.shadows import Shadows
from libortho.privacy.statistics import FamilyResult
from libortho.progress import Progress, silent
from libortho.records import Record

AUDIT = "audit"
ALWAYS = "greedy"
"""The attack that the power gate reads."""
REDUCED_ROWS = 40
REDUCED = Budget(candidates=200, sampled=20, beams=20, relearn_steps=40)
"""What fits into half an hour on two CPU cores with the reference model."""
VOID_BEFORE = "the audit was void before this attack began: {reason}"


def audit(
    model: str | Path,
    data: str | Path,
    *,
    controls: str | Path | None = None,
    reference: str | Path | None = None,
    positive: str | Path | None = None,
    shadows: str | Path | None = None,
    alphas: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    limit: int | None = None,
    budget: Budget | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress = silent,
) -> Record:
    """Attack a model for private data at given alphas and judge the states that should be silent.

    What would make the audit VOID is looked at first, and ends it before any costly attack.

    Args:
        model: a directory written by libortho, whose streams are all attached, or any checkpoint
            in floating point.
        data: JSONL that it was trained on.
        controls: JSONL of the same law that it never saw; drawn where ``data`` are canaries.
        reference: a checkpoint that never saw the data; by default the model's own base where all
            its private streams are exact.
        positive: a checkpoint that recites the data, which shows that the attacks have power,
            where the model has no private stream whose opening could show it.
        shadows: folder of shadow runs, for LiRA.
        alphas: as on the command line (``"0"``, ``"private=1,repair=1"``); 0 and 1 by default.
        attacks: names; by default all that can be run. Greedy extraction always is.
        limit: take only so many rows of each half.
        budget: of the costly attacks.
        out: file that the record is written to. Until then what every attack found is kept beside
            it, in ``NAME-….partial``; the same audit, asked again, goes on from there.

    Returns:
        A record of experiment ``audit``: per state, per attack, figures with n and 95% interval.

    Raises:
        ConfigError: controls, a reference or shadow runs are needed and were not given, an attack
            is unknown, the data do not fit the model, or ``out`` is there already.
        LibOrthoError: a file or directory cannot be read.
    """
    begin = time.monotonic()
    if out is not None and Path(out).exists():
        raise ConfigError(f"{out} is there already; choose another file, or move it away")
    rows = read_data(data, controls, limit)
    target = open_target(model, alphas, device=device, dtype=dtype)
    if positive is not None and target.guarantees:
        raise ConfigError(
            f"--positive {positive}: {target.name} has private streams, whose opening shows "
            "whether the attacks have power; leave it out"
        )
    chosen = choose(
        None if attacks is None else list(dict.fromkeys([ALWAYS, *attacks])),
        target,
        rows,
        data_file=data,
        reference=reference,
        shadows=shadows,
    )
    spent = budget or Budget()
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    everyone = [*rows.members, *rows.controls]
    runs = None if shadows is None else open_shadows(shadows, everyone)
    never = open_reference(target, reference, **place)
    halves = [encode(target.tokenizer, half, target.context) for half in rows.halves]
    scored = score(target, rows, halves, spent.batch_size, progress)
    recited = None
    if positive is not None:
        recited = positive_recall(
            positive, rows.members, batch_size=spent.batch_size, progress=progress, **place
        )
    before = preconditions(target, rows, scored, recited)
    verdict, reason = judge(before)
    if verdict == "VOID":
        chosen = _void(chosen, reason)
    config = _config(target, rows, never, runs, chosen.attacks, spent, str(device), str(dtype))
    parts = Parts(
        None if out is None else Path(out).parent, target.name, _run(config, target, seed)
    )

    @functools.cache
    def shadow_scores() -> Shadows | None:
        if runs is None:
            return None
        return runs.score(everyone, batch_size=spent.batch_size, progress=progress, **place)

    tested, earlier = attempt(
        target,
        rows,
        scored,
        chosen.attacks,
        reference=None
        if never is None or verdict == "VOID"
        else never.scored(halves, spent.batch_size, progress),
        shadows=shadow_scores,
        parts=parts,
        budget=spent,
        seed=seed,
        progress=progress,
    )
    listed, tests, found = [], FamilyResult((), {}), before
    if verdict != "VOID":
        listed = family(
            chosen.attacks, rows.kind, [state.label for state in target.judged], spent.sampling
        )
        after, tests = findings(target, tested, canaries=rows.kind is not None, listed=listed)
        found = [*before, *after, *power(target, scored, recited, after)]
        verdict, reason = judge(found)
    record = records.new(
        AUDIT,
        verdict,
        n=len(rows.members),
        seeds=[seed],
        backend=backend_name() if hasattr(target.model, "ortho") else "stock transformers",
        reason=reason,
        config=config,
        figures={
            "verdict": verdict,
            "positive_recall": recited,
            "members": len(rows.members),
            "controls": len(rows.controls),
            "states": [state.label for state in target.states],
            "judged": [state.label for state in target.judged],
            "guarantees": dict(target.guarantees),
            "reference": None if never is None else never.name,
            "seconds": time.monotonic() - begin + earlier,
            "checks": as_json(found),
            "family": _family(listed, tests),
        },
        methods={one.state.label: _method(one, target) for one in tested},
        not_run=chosen.not_run,
    )
    if out is not None:
        records.write(record, out)
        parts.discard()
    return record


def _void(chosen: Chosen, reason: str) -> Chosen:
    """Greedy extraction alone, which the scores hold already."""
    rest = {name: VOID_BEFORE.format(reason=reason) for name in chosen.attacks if name != ALWAYS}
    return Chosen((ALWAYS,), rest | chosen.not_run)


def _run(config: dict[str, Any], target: Target, seed: int) -> dict[str, Any]:
    """What tells this audit from any other: parts of another one must not enter its record."""
    environment = records.collect_environment()
    return {
        "config": config,
        "states": [state.label for state in target.states],
        "seed": seed,
        "commit": environment.commit,
        "versions": environment.versions,
        "cpu": environment.hardware.cpu,
        "gpu": environment.hardware.gpu,
    }


def _config(
    target: Target,
    rows: Data,
    never: Other | None,
    runs: ShadowRuns | None,
    attacks: Sequence[str],
    budget: Budget,
    device: str,
    dtype: str,
) -> dict[str, Any]:
    return {
        "model": target.name,
        "identity": target.identity,
        "streams": dict(target.streams),
        "reference": None if never is None else never.identity,
        "shadows": None if runs is None else runs.identity,
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
        "seconds": dict(one.seconds),
        "raw": {name: dict(outcome.raw) for name, outcome in one.outcomes.items()},
    }
