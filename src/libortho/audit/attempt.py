"""Attacks chosen, given what they need, and run in every state of the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from libortho import gate
from libortho.audit.data import Data
from libortho.audit.shadow_runs import read_shadows
from libortho.audit.target import AS_IT_IS, State, Target, plain
from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError
from libortho.model import load
from libortho.privacy.attacks import ATTACKS
from libortho.privacy.attacks.subject import Budget, Half, Outcome, Reference, Subject
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.shadows import Shadows
from libortho.privacy.token_scores import token_scores
from libortho.progress import Progress
from libortho.tune.prepare import is_base

ITSELF = "the same base with every stream closed"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Which attacks are run, and why others are not.

    Attributes:
        attacks: in the order of the registry.
        not_run: by attack, the command that would run it, or what it lacks.
    """

    attacks: tuple[str, ...]
    not_run: dict[str, str]


def choose(
    asked: Sequence[str] | None,
    target: Target,
    data: Data,
    *,
    data_file: str | Path,
    reference: str | Path | None,
    shadows: str | Path | None,
) -> Chosen:
    """Take the attacks asked for, or all that can be run; what is lacking is told.

    Raises:
        ConfigError: an attack is unknown; or it was asked for, and what it needs was not given;
            or there is no reference, which is asked for unless attacks are chosen without it.
            All of them are listed.
    """
    unknown = sorted(set(asked or ()) - ATTACKS.keys())
    if unknown:
        raise ConfigError(f"unknown attack(s): {', '.join(unknown)}; known: {', '.join(ATTACKS)}")
    lacking = {}
    if data.kind is None:
        lacking["canaries"] = (
            "associate prompts can only be made of libortho's own canaries: "
            "libortho canaries 200 -o DIR"
        )
    if shadows is None:
        lacking["shadows"] = (
            "LiRA needs shadow runs, given by --shadows DIR: "
            f"libortho shadows --data {data_file} -o DIR"
        )
    if reference is None and not stands_for_itself(target):
        lacking["reference"] = (
            "the reference attack needs a checkpoint that never saw the data, given by "
            "--reference: the public checkpoint that private training began with, or its base by\n"
            "    libortho quantize PUBLIC -o REFERENCE\n"
            "To go without, name the other attacks, each with --attack"
        )
    names = [name for name in ATTACKS if asked is None or name in asked]
    missing = {name: lacking[need] for name in names if (need := ATTACKS[name].needs) in lacking}
    fatal = [
        f"{name}: {why}"
        for name, why in missing.items()
        if asked is not None or ATTACKS[name].needs == "reference"
    ]
    if fatal:
        raise ConfigError("\n".join(fatal))
    return Chosen(tuple(name for name in names if name not in missing), missing)


def stands_for_itself(target: Target) -> bool:
    """Whether the target's own base is a model that never saw the data: all streams exact."""
    return bool(target.guarantees) and set(target.guarantees.values()) == {"exact"}


@dataclasses.dataclass(frozen=True)
class Tested:
    """Outcomes of one state, by attack."""

    state: State
    outcomes: dict[str, Outcome]


def attempt(
    target: Target,
    data: Data,
    attacks: Sequence[str],
    *,
    reference: str | Path | None,
    shadows: str | Path | None,
    budget: Budget,
    seed: int,
    device: str | torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> tuple[list[Tested], str | None]:
    """Run attacks in every state; those on weights only where nothing should be known.

    Returns:
        per state its outcomes, and the name of the reference, where one was used.
    """
    halves = [
        encode(target.tokenizer, half, target.context) for half in (data.members, data.controls)
    ]
    never = _reference(target, halves, reference, budget, device, dtype, progress)
    shadow: Shadows | None = None
    if shadows is not None:
        shadow = read_shadows(
            shadows,
            [*data.members, *data.controls],
            batch_size=budget.batch_size,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    tested: list[Tested] = []
    for state in target.states:
        with gate.alpha(state.alpha):
            members, controls = (
                Half(
                    examples,
                    encoded,
                    token_scores(
                        target.model,
                        encoded,
                        budget.batch_size,
                        stage=f"{state.label}: score",
                        progress=progress,
                    ),
                )
                for examples, encoded in zip((data.members, data.controls), halves, strict=True)
            )
            own = never
            if never is not None and never.model is target.model:
                own = dataclasses.replace(never, itself=state.alpha == never.alpha)
            subject = Subject(
                target.model,
                target.tokenizer,
                members,
                controls,
                kind=data.kind,
                reference=own,
                shadows=shadow,
                seed=seed,
                budget=budget,
                progress=_labelled(state.label, progress),
            )
            outcomes = {}
            for done, name in enumerate(attacks):
                if not ATTACKS[name].weights or state in target.judged:
                    progress(f"{state.label}: attacks", done, len(attacks), {"attack": name})
                    outcomes[name] = ATTACKS[name].run(subject)
            progress(f"{state.label}: attacks", len(attacks), len(attacks), {})
            tested.append(Tested(state, outcomes))
    return tested, None if never is None else never.name


def _labelled(label: str, progress: Progress) -> Progress:
    def report(stage: str, done: int, total: int, info: Any) -> None:
        progress(stage if label == AS_IT_IS else f"{label}: {stage}", done, total, info)

    return report


def _reference(
    target: Target,
    halves: Sequence[Sequence[Encoded]],
    path: str | Path | None,
    budget: Budget,
    device: str | torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> Reference | None:
    if path is None:
        if not stands_for_itself(target):
            return None
        name, model = ITSELF, target.model
    elif is_base(path):
        name, model = Path(path).resolve().name, load(path, device=device, dtype=dtype)
    else:
        checkpoint = Checkpoint(path)
        name, model = checkpoint.path.name, plain(checkpoint, device, dtype)
    if model.config.vocab_size != target.model.config.vocab_size:
        raise ConfigError(
            f"--reference {path}: a vocabulary of {model.config.vocab_size} tokens, the audited "
            f"model has {target.model.config.vocab_size}; give the checkpoint it was tuned from"
        )
    with gate.alpha(0.0):
        members, controls = (
            [
                one.nll
                for one in token_scores(
                    model, half, budget.batch_size, stage="reference", progress=progress
                )
            ]
            for half in halves
        )
    return Reference(name, model, 0.0, members, controls)
