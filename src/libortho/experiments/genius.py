"""``genius``: how much of the arithmetic that coarse rounding costs does `repair` bring back?"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from libortho import gate, records
from libortho.checkpoint import Checkpoint, resolve
from libortho.errors import ConfigError
from libortho.evaluate.arithmetic import Accuracy, Problem, accuracy, make_problems
from libortho.evaluate.paired import gap, mcnemar, recovered_fraction
from libortho.evaluate.perplexity import token_nll
from libortho.experiments.states import backend_name
from libortho.experiments.verdict import Check, as_json, at_least, judge
from libortho.gate import REPAIR
from libortho.model import load
from libortho.privacy.statistics import clopper_pearson, paired_bootstrap_ratio
from libortho.progress import Progress, silent
from libortho.quantize import quantize
from libortho.records import Record, write_atomic
from libortho.repair import RepairOptions, repair
from libortho.streams.base import BaseStream
from libortho.streams.ortho import STREAM_FOLDER
from libortho.texts import Text, calibration, heldout, windows
from libortho.texts import replay as shipped_replay
from libortho.tune import replay_windows
from libortho.tune.options import ReplayOptions
from libortho.tune.prepare import base_at, is_base, plain_model
from libortho.tune.replay import Replay

NAME = "genius"
HEADLINE = "absmax3"
SIGNIFICANCE = 0.05
RECOVERED = 0.5
ERRORS = 3.0
FP = "fp"


@dataclass(frozen=True)
class Rounding:
    """How a base is made from the public checkpoint."""

    method: Any
    bits: int


BASES: Mapping[str, Rounding] = {
    HEADLINE: Rounding("absmax", 3),
    "mse3": Rounding("mse", 3),
    "gptq3": Rounding("gptq", 3),
    "gptq2": Rounding("gptq", 2),
    "gptq4": Rounding("gptq", 4),
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        problems: arithmetic problems that every model answers.
        tokens: of held-out text.
        bases: by name.
        densities: of `repair`, nnz / numel; the first is the one that is judged.
        repair: everything else about `repair`.
        pool: windows of public text that its KL steps draw from, the same for every base.
    """

    problems: int
    tokens: int
    repair: RepairOptions
    pool: int = 250
    densities: tuple[float, ...] = (0.01, 0.02, 0.05)
    bases: Mapping[str, Rounding] = field(default_factory=lambda: BASES)


FULL = Plan(2000, 60_000, RepairOptions(steps=400, lr=3e-3), pool=1000)
SMALL = replace(FULL, problems=500, tokens=10_000, repair=RepairOptions(steps=60), pool=250)


@dataclass(frozen=True)
class Answers:
    """What one model did: a flag a problem, and mean NLL a window of held-out text, in nats."""

    correct: list[bool]
    nll: list[float]

    @property
    def accuracy(self) -> float:
        """Share of problems answered."""
        return sum(self.correct) / len(self.correct)

    def as_json(self) -> dict[str, JsonValue]:
        """For the raw part of a record; flags as 0 and 1."""
        return {"correct": [int(flag) for flag in self.correct], "nll": [*self.nll]}


def chosen(names: Sequence[str]) -> dict[str, Rounding]:
    """The bases of those names, in the order given; all of them for no name.

    Raises:
        ConfigError: names that are none.
    """
    strange = [name for name in names if name not in BASES]
    if strange:
        raise ConfigError(f"no such base: {', '.join(strange)}; known: {', '.join(BASES)}")
    return {name: BASES[name] for name in names or BASES}


def genius(
    public: str | Path,
    folder: Path,
    *,
    seeds: Sequence[int] = (0,),
    plan: Plan = FULL,
    text: Text | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[Record]:
    """One record per seed; a run in the same ``folder`` goes on after the last model it asked.

    Args:
        folder: gets ``genius/`` with the bases, their `repair` and the answers.
        text: public text for calibration and `repair`; default the shipped texts of either.
        device: where `repair` is trained; everything is asked on the CPU.
    """
    return [
        _Run(Path(folder) / NAME, public, plan, seed, text, device, progress).record()
        for seed in seeds
    ]


class _Run:
    def __init__(
        self,
        folder: Path,
        public: str | Path,
        plan: Plan,
        seed: int,
        text: Text | None,
        device: str | torch.device,
        progress: Progress,
    ) -> None:
        self.public, self.plan, self.seed = public, plan, seed
        self.text, self.device, self.progress = text, device, progress
        self.checkpoint = Checkpoint(public)
        self.tokenizer = self.checkpoint.tokenizer()
        self.problems: list[Problem] = make_problems(plan.problems, seed)
        context = self.checkpoint.config.get_text_config().max_position_embeddings
        self.heldout = heldout()
        self.windows: Tensor = windows(self.heldout, self.tokenizer, context, plan.tokens)
        self.folder = folder / f"seed-{seed}-{self._key()}"

    def record(self) -> Record:
        begin = time.monotonic()
        full = self._answers(FP, None, 0.0)
        methods = {name: self._method(name, full) for name in self.plan.bases}
        checks = _checks(methods)
        verdict, reason = judge(checks)
        plan = self.plan
        return records.new(
            NAME,
            verdict,
            n=plan.problems,
            seeds=[self.seed],
            backend=backend_name(),
            reason=reason,
            config={
                "public": self.checkpoint.path.name,
                "public_sha256": self.checkpoint.sha256(),
                "heldout": {"name": self.heldout.name, "sha256": self.heldout.sha256},
                "tokens": plan.tokens,
                "text": self._text(),
                "densities": list(plan.densities),
                "repair": plan.repair.model_dump(mode="json", exclude={"density", "seed"}),
                "pool": plan.pool,
                "bases": {name: asdict(how) for name, how in plan.bases.items()},
                "device": str(self.device),
            },
            figures={
                "accuracy_fp": full.accuracy,
                "accuracy_fp_interval": [*_interval(full.correct)],
                "ppl_fp": math.exp(fmean(full.nll)),
                "checks": as_json(checks),
                "seconds": time.monotonic() - begin,
            },
            methods=methods,
            raw={
                "problems": [[one.prompt, one.answer] for one in self.problems],
                FP: full.as_json(),
            },
        )

    def _method(self, name: str, full: Answers) -> dict[str, Any]:
        base = self._base(name)
        rounded = self._answers(name, base.path, 0.0)
        lost = gap(full.correct, rounded.correct)
        void = not lost.exceeds(ERRORS)
        figures: dict[str, Any] = {
            "void": void,
            "accuracy": rounded.accuracy,
            "accuracy_interval": _interval(rounded.correct),
            "lost": lost.value,
            "lost_error": lost.error,
            **self._perplexity(rounded, full),
        }
        raw: dict[str, Any] = {name: rounded.as_json()}
        points = []
        # Where rounding lost too little to tell, there is nothing that `repair` could bring back.
        for density in () if void else self.plan.densities:
            where = self._repaired(name, base, density)
            mended = self._answers(where.name, where, {REPAIR: 1.0})
            share = recovered_fraction(
                full.correct, rounded.correct, mended.correct, seed=self.seed
            )
            points.append(
                {
                    "density": density,
                    "accuracy": mended.accuracy,
                    "accuracy_interval": _interval(mended.correct),
                    "p": mcnemar(mended.correct, rounded.correct),
                    **self._perplexity(mended, full),
                    "recovered": share.value,
                    "recovered_interval": [share.interval.low, share.interval.high],
                }
            )
            raw[where.name] = mended.as_json()
        return {**figures, "repaired": points, "raw": raw}

    def _base(self, name: str) -> BaseStream:
        path = self.folder / name
        if is_base(path):
            return BaseStream.open(path)
        how = self.plan.bases[name]
        return quantize(
            self.public,
            path,
            method=how.method,
            bits=how.bits,
            seed=self.seed,
            text=self.text if how.method == "gptq" else None,
            progress=self.progress,
        )

    def _repaired(self, name: str, base: BaseStream, density: float) -> Path:
        """A copy of the base with a `repair` stream of that density beside it."""
        there = base_at(base.path, self.folder / f"{name}+{density:g}")
        if not (there.path / STREAM_FOLDER / REPAIR).is_dir():
            options = self.plan.repair.model_copy(update={"density": density, "seed": self.seed})
            repair(
                there,
                self.public,
                text=self.text,
                options=options,
                replay=self._replay,
                device=self.device,
                progress=self.progress,
            )
        return there.path

    @cached_property
    def _replay(self) -> Replay:
        """The pool that every `repair` is trained on: its teacher is asked once for all of them."""
        options = ReplayOptions(replay_pool=self.plan.pool, seed=self.seed)
        pool = replay_windows(self.tokenizer, options, self.text)
        return Replay(pool, plain_model(self.checkpoint.path, self.device))

    def _answers(self, arm: str, base: Path | None, alpha: gate.Setting) -> Answers:
        """Ask one model (the public one where there is no base), or read what it said before."""
        file = self.folder / f"{arm}.answers.json"
        if file.is_file():
            return Answers(**json.loads(file.read_text("utf-8")))
        streams = list(alpha) if isinstance(alpha, Mapping) else []
        model = load(base, streams) if base else plain_model(resolve(self.public), "cpu")
        with gate.alpha(alpha):
            asked: Accuracy = accuracy(
                model,
                self.tokenizer,
                self.problems,
                stage=f"arithmetic {arm}",
                progress=self.progress,
            )
            nll = token_nll(model, self.windows, stage=f"text {arm}", progress=self.progress)
        answers = Answers(list(asked.correct), nll.double().mean(1).tolist())
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(asdict(answers)))
        return answers

    def _perplexity(self, ours: Answers, full: Answers) -> dict[str, Any]:
        # Windows are what is resampled, so that their means say all that the ratio needs.
        ratio = paired_bootstrap_ratio(
            [[one] for one in ours.nll], [[one] for one in full.nll], seed=self.seed
        )
        return {
            "ppl": math.exp(fmean(ours.nll)),
            "ppl_ratio": ratio.value,
            "ppl_ratio_interval": [ratio.interval.low, ratio.interval.high],
        }

    def _text(self) -> dict[str, JsonValue]:
        """What base and `repair` are made on."""
        return {
            "calibration_sha256": (self.text or calibration()).sha256,
            "replay_sha256": (self.text or shipped_replay()).sha256,
        }

    def _key(self) -> str:
        """Changes with whatever the answers depend on, so that no run goes on from another's."""
        told = json.dumps(
            {
                "public": self.checkpoint.sha256(),
                "problems": self.plan.problems,
                "tokens": self.plan.tokens,
                "repair": self.plan.repair.model_dump(mode="json"),
                "pool": self.plan.pool,
                "text": self._text(),
            },
            sort_keys=True,
        )
        return hashlib.sha256(told.encode()).hexdigest()[:12]


def _checks(methods: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """The rule of the headline base (the first, where that one was left out).

    The others are reported, each VOID or not on its own.
    """
    judged = HEADLINE if HEADLINE in methods else next(iter(methods))
    base = methods[judged]
    limit = f"> {ERRORS:g} standard errors, {ERRORS * base['lost_error']:.4g}"
    checks = [Check(f"{judged}: FP − base", not base["void"], "VOID", base["lost"], limit)]
    if base["void"]:
        return checks
    first = base["repaired"][0]
    at = f"{judged} with {100 * first['density']:g}% repair"
    return [
        *checks,
        at_least(f"{at}: recovered fraction", first["recovered"], RECOVERED, "FAIL"),
        Check(f"{at}: McNemar p", first["p"] < SIGNIFICANCE, "FAIL", first["p"], "< 0.05"),
    ]


def _interval(correct: Sequence[bool]) -> list[float]:
    found = clopper_pearson(sum(correct), len(correct))
    return [found.low, found.high]
