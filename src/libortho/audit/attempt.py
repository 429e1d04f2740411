"""Every state of the gate scored, and then attacked."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from libortho import gate
from libortho.audit.data import Data
from libortho.audit.parts import Done, Parts
from libortho.audit.target import AS_IT_IS, State, Target
from libortho.privacy.attacks import ATTACKS
from libortho.privacy.attacks.subject import Budget, Half, Outcome, Reference, Subject
from libortho.privacy.encode import Encoded
from libortho.privacy.shadows import Shadows
from libortho.privacy.token_scores import token_scores
from libortho.progress import Progress


@dataclasses.dataclass(frozen=True)
class Scored:
    """What the model says of every completion in one state."""

    state: State
    members: Half
    controls: Half

    @property
    def recall(self) -> float:
        """Share of the members that greedy decoding recites."""
        return sum(self.members.exact) / len(self.members.exact)


@dataclasses.dataclass(frozen=True)
class Tested:
    """Outcomes of one state, by attack, with the seconds that each took."""

    state: State
    outcomes: Mapping[str, Outcome]
    seconds: Mapping[str, float]


def score(
    target: Target,
    data: Data,
    halves: Sequence[Sequence[Encoded]],
    batch_size: int,
    progress: Progress,
) -> list[Scored]:
    """Members and controls token by token in every state: cheap, and all that most attacks need."""
    scored = []
    for state in target.states:
        with gate.alpha(state.alpha):
            scored.append(
                Scored(
                    state,
                    *(
                        Half(
                            examples,
                            encoded,
                            token_scores(
                                target.model,
                                encoded,
                                batch_size,
                                stage=f"{state.label}: score",
                                progress=progress,
                            ),
                        )
                        for examples, encoded in zip(
                            (data.members, data.controls), halves, strict=True
                        )
                    ),
                )
            )
    return scored


def attempt(
    target: Target,
    data: Data,
    scored: Sequence[Scored],
    attacks: Sequence[str],
    *,
    reference: Reference | None,
    shadows: Callable[[], Shadows | None],
    parts: Parts,
    budget: Budget,
    seed: int,
    progress: Progress,
) -> tuple[list[Tested], float]:
    """Run attacks in every state; those on weights only where nothing should be known.

    Args:
        shadows: scores the shadow runs, once they are needed.
        parts: outcomes of an earlier run, which are not computed again, and of this one.

    Returns:
        per state its outcomes, and the seconds that earlier sessions spent on them.
    """
    tested: list[Tested] = []
    earlier = 0.0
    for index, one in enumerate(scored):
        state = one.state
        own = reference
        if own is not None and own.model is target.model:
            own = dataclasses.replace(own, itself=state.alpha == own.alpha)
        subject = Subject(
            target.model,
            target.tokenizer,
            one.members,
            one.controls,
            kind=data.kind,
            reference=own,
            seed=seed,
            budget=budget,
            progress=_labelled(state.label, progress),
        )
        names = [name for name in attacks if not ATTACKS[name].weights or state in target.judged]
        done: dict[str, Done] = {}
        for name in names:
            progress(f"{state.label}: attacks", len(done), len(names), {"attack": name})
            kept = parts.read(name, index)
            if kept is not None:
                earlier += kept.seconds
                done[name] = kept
                continue
            begin = time.monotonic()
            if ATTACKS[name].needs == "shadows":
                subject = dataclasses.replace(subject, shadows=shadows())
            with gate.alpha(state.alpha):
                outcome = ATTACKS[name].run(subject)
            done[name] = Done(outcome, time.monotonic() - begin)
            parts.write(name, index, done[name])
        progress(f"{state.label}: attacks", len(names), len(names), {})
        tested.append(
            Tested(
                state,
                {name: each.outcome for name, each in done.items()},
                {name: each.seconds for name, each in done.items()},
            )
        )
    return tested, earlier


def _labelled(label: str, progress: Progress) -> Progress:
    def report(stage: str, done: int, total: int, info: Any) -> None:
        progress(stage if label == AS_IT_IS else f"{label}: {stage}", done, total, info)

    return report
