"""Every experiment under one signature, so that a command can run one or all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from libortho.errors import ConfigError
from libortho.experiments import (
    alpha_sweep,
    benchmarks,
    dp,
    family,
    genius,
    separation_plan,
    unlearning,
    unlearning_plan,
)
from libortho.experiments.killswitch import MEMBERS, killswitch, utility
from libortho.experiments.performance import performance
from libortho.experiments.separation import separation
from libortho.progress import Progress, silent
from libortho.records import Record
from libortho.texts import Text
from libortho.tune.dpsgd import INSTALL, require_opacus


@dataclass(frozen=True)
class Ask:
    """What a user asks of an experiment.

    Attributes:
        model: public checkpoint.
        folder: keeps what was made, so that a run can go on.
        members: canaries; the experiment's own number where None.
        problems: arithmetic problems; the experiment's own number where None.
        bases: how the model is rounded; all of the experiment's ways where empty.
        densities: of `repair`; the experiment's own where empty.
        small: the reduced plan for two CPU cores.
        data: folder of a dataset that is not shipped.
        tasks: of lm-eval; the experiment's own where empty.
        text: public text; default the shipped samples.
        device: of training.
    """

    model: str | Path
    folder: Path
    members: int | None = None
    problems: int | None = None
    bases: Sequence[str] = ()
    densities: Sequence[float] = ()
    small: bool = False
    data: Path | None = None
    tasks: Sequence[str] = ()
    text: Text | None = None
    device: str | torch.device = "cpu"
    progress: Progress = silent

    def common(self, seed: int) -> dict[str, Any]:
        """What every experiment takes."""
        return {
            "seeds": [seed],
            "text": self.text,
            "device": self.device,
            "progress": self.progress,
        }


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        run: makes the record of one seed.
        takes: which of ``members``, ``problems``, ``base``, ``density``, ``small``, ``data``,
            ``task`` and ``device`` mean something to it.
        seeds: run by default.
        missing: raises ConfigError where what it needs is not there.
        install: the command that mends that.
    """

    run: Callable[[Ask, int], list[Record]]
    takes: frozenset[str]
    seeds: Sequence[int] = family.SEEDS
    missing: Callable[[], None] = lambda: None
    install: str = ""

    def record(self, ask: Ask, seed: int) -> Record:
        """The record of one seed.

        Raises:
            ConfigError: the experiment does not take what was asked; all of it is named.
        """
        given = {
            "members": ask.members,
            "problems": ask.problems,
            "base": ask.bases or None,
            "density": ask.densities or None,
            "small": ask.small or None,
            "data": ask.data,
            "task": ask.tasks or None,
            "device": None if str(ask.device) == "cpu" else ask.device,
        }
        asked = [name for name, value in given.items() if value is not None]
        strange = [f"--{name}" for name in asked if name not in self.takes]
        if strange:
            raise ConfigError(f"this experiment does not take {', '.join(strange)}")
        (made,) = self.run(ask, seed)
        return made


def _killswitch(ask: Ask, seed: int) -> list[Record]:
    members = ask.members or MEMBERS
    return killswitch(ask.model, ask.folder, members=members, **ask.common(seed))


def _utility(ask: Ask, seed: int) -> list[Record]:
    members = ask.members or MEMBERS
    return utility(ask.model, ask.folder, members=members, **ask.common(seed))


def _genius(ask: Ask, seed: int) -> list[Record]:
    plan = genius.SMALL if ask.small else genius.FULL
    bases = genius.chosen(ask.bases)
    densities = tuple(ask.densities) or plan.densities
    problems = ask.problems or plan.problems
    plan = replace(plan, problems=problems, bases=bases, densities=densities)
    return genius.genius(ask.model, ask.folder, plan=plan, **ask.common(seed))


def _separation(ask: Ask, seed: int) -> list[Record]:
    plan = separation_plan.SMALL if ask.small else separation_plan.FULL
    plan = replace(plan, members=ask.members or plan.members)
    return separation(ask.model, ask.folder, plan=plan, **ask.common(seed))


def _alpha_sweep(ask: Ask, seed: int) -> list[Record]:
    plan = alpha_sweep.SMALL if ask.small else alpha_sweep.FULL
    members = ask.members or plan.ways.members
    plan = replace(
        plan,
        problems=ask.problems or plan.problems,
        ways=replace(plan.ways, members=members),
    )
    return alpha_sweep.alpha_sweep(ask.model, ask.folder, plan=plan, **ask.common(seed))


def _dp(ask: Ask, seed: int) -> list[Record]:
    plan = dp.SMALL if ask.small else dp.FULL
    plan = replace(plan, members=ask.members or plan.members)
    return dp.dp(ask.model, ask.folder, plan=plan, **ask.common(seed))


def _unlearning(ask: Ask, seed: int) -> list[Record]:
    plan = unlearning_plan.SMALL if ask.small else unlearning_plan.FULL
    return unlearning.unlearning(
        ask.model, ask.folder, data=ask.data, plan=plan, **ask.common(seed)
    )


def _benchmarks(ask: Ask, seed: int) -> list[Record]:
    plan = benchmarks.SMALL if ask.small else benchmarks.FULL
    members = ask.members or plan.ways.members
    plan = replace(
        plan, problems=ask.problems or plan.problems, ways=replace(plan.ways, members=members)
    )
    return benchmarks.benchmarks(
        ask.model, ask.folder, tasks=ask.tasks, plan=plan, **ask.common(seed)
    )


def _performance(ask: Ask, seed: int) -> list[Record]:
    return [performance(seed=seed, progress=ask.progress)]


def workplace(small: bool) -> str:
    """Name of the folder that experiments share: one plan a folder, and ``small`` is another."""
    return "canaries-small" if small else "canaries"


_TRAINED = frozenset({"members", "device"})
EXPERIMENTS: Mapping[str, Experiment] = {
    "killswitch": Experiment(_killswitch, _TRAINED),
    "utility": Experiment(_utility, _TRAINED),
    "alpha-sweep": Experiment(_alpha_sweep, _TRAINED | {"problems", "small"}),
    "genius": Experiment(
        _genius, frozenset({"problems", "base", "density", "small", "device"}), seeds=(0,)
    ),
    "dp": Experiment(
        _dp, _TRAINED | {"small"}, seeds=(0,), missing=require_opacus, install=INSTALL
    ),
    "performance": Experiment(_performance, frozenset(), seeds=(0,)),
    "separation": Experiment(_separation, _TRAINED | {"small"}),
    "unlearning": Experiment(_unlearning, frozenset({"data", "small", "device"}), seeds=(0,)),
    "benchmarks": Experiment(
        _benchmarks,
        _TRAINED | {"problems", "small", "task"},
        seeds=(0,),
        missing=benchmarks.require_lm_eval,
        install=benchmarks.INSTALL,
    ),
}
