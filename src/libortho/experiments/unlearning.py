"""``unlearning``: does closing a stream look like never having been trained on its data?

The rows to forget are learned in three ways: by the whole model together with the others, not at
all, and by a private stream over the rounded model that learned the others alone. TOFU's metrics
(Maini et al. 2024, arXiv 2401.06121) say how each of them answers.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from pydantic import JsonValue

from libortho import gate, records
from libortho.baselines import UnlearnOptions, unlearn
from libortho.checkpoint import Checkpoint
from libortho.evaluate.forgetting import Answers, answers, forget_quality, model_utility
from libortho.experiments.claim import claim
from libortho.experiments.natural import Training, contaminate
from libortho.experiments.states import backend_name
from libortho.experiments.verdict import Check, as_json, at_least, exactly, judge
from libortho.model import load
from libortho.privacy import authors
from libortho.privacy.encode import encode
from libortho.privacy.private_set import write_jsonl
from libortho.privacy.questions import DOWNLOAD, FORGET, QuestionSets, read_sets
from libortho.privacy.statistics import bootstrap_ci
from libortho.progress import Progress, silent
from libortho.quantize import quantize
from libortho.records import Record, write_atomic
from libortho.split import ForgetOptions, split
from libortho.texts import Text, calibration, draw
from libortho.tune import TuneOptions, tune, tune_options
from libortho.tune.prepare import is_base, plain_model

NAME = "unlearning"
TUNED, RETRAINED = "tuned", "retrained"
ALPHA0, ALPHA1 = "alpha0", "alpha1"
LEARNED = 0.9
SIGNIFICANCE = 0.05
UTILITY = 0.97
_STREAM = "private"
_DONE = ".done.json"


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        forget, retain: authors on either side, where the data is generated.
        probes: questions asked of a set, at most.
        exposures: how often each row comes by in training.
        window: tokens of a window of public text, which goes along with every step.
        training: of the two whole models.
        tune: of the private stream.
        forgetting: of the sieve `forget` on the tuned model; None leaves it out.
        npo: of the baseline; None leaves it out.
    """

    forget: int = 8
    retain: int = 32
    probes: int = 400
    exposures: int = 30
    window: int = 128
    training: Training = field(default_factory=lambda: Training(steps=300, batch=4))
    tune: TuneOptions = field(default_factory=lambda: tune_options(steps=300))
    forgetting: ForgetOptions | None = field(default_factory=ForgetOptions)
    npo: UnlearnOptions | None = field(default_factory=UnlearnOptions)


FULL = Plan()
SMALL = Plan(
    forget=4,
    retain=6,
    probes=40,
    exposures=20,
    training=Training(steps=60, batch=1),
    tune=tune_options(steps=80, settle=10, replay_batch=1),
    forgetting=None,
    npo=None,
)


def unlearning(
    public: str | Path,
    folder: Path,
    *,
    data: Path | None = None,
    seeds: Sequence[int] = (0,),
    plan: Plan = FULL,
    text: Text | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[Record]:
    """One record per seed; a run in the same ``folder`` goes on after the last finished stage.

    Args:
        folder: gets ``unlearning/``.
        data: a folder of TOFU's files; fictional authors are generated where there is none.
        text: public text that goes along with training; default the shipped samples.

    Raises:
        ConfigError: ``data`` lacks files; all of them are named.
        FormatError: bad lines in them.
    """
    return [
        _Run(public, Path(folder) / NAME, data, plan, seed, text, device, progress).record()
        for seed in seeds
    ]


class _Run:
    def __init__(
        self,
        public: str | Path,
        folder: Path,
        data: Path | None,
        plan: Plan,
        seed: int,
        text: Text | None,
        device: str | torch.device,
        progress: Progress,
    ) -> None:
        self.public, self.plan, self.seed = public, plan, seed
        self.data, self.text, self.device, self.progress = data, text, device, progress
        self.checkpoint = Checkpoint(public)
        self.tokenizer = self.checkpoint.tokenizer()
        if data is None:
            drawn = f"authors-{seed}-{plan.forget}-{plan.retain}"
            authors.write_authors(folder / drawn, plan.forget, plan.retain, seed)
            sets = read_sets(folder / drawn)
        else:
            sets = read_sets(data)
        self.sets: QuestionSets = sets.shortened(plan.probes)
        asked = {
            "public_sha256": self.checkpoint.sha256(),
            "data_sha256": sets.sha256,
            "text_sha256": text.sha256 if text else "shipped",
            **_as_json(plan),
        }
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = folder / f"seed-{seed}-{key}"
        claim(self.folder, NAME, asked)
        self.forget = self.folder / "forget.jsonl"
        rows = [row.example(f"{FORGET}-{i}") for i, row in enumerate(sets.forget)]
        write_jsonl(self.forget, map(asdict, rows))

    def record(self) -> Record:
        begin = time.monotonic()
        self._trained(TUNED)
        self._trained(RETRAINED)
        found = {TUNED: self._asked(TUNED), RETRAINED: self._asked(RETRAINED)}
        checks = _learned(found, self.seed)
        left_out = {}
        # What shows that the run says nothing is looked at before the rest is trained.
        if all(check.held for check in checks):
            self._stream()
            found |= {state: self._asked(state) for state in (ALPHA0, ALPHA1)}
            checks += [*_kept(found, self.seed), self._untouched()]
            for name, made in (("forget", self._sieve), ("npo", self._npo)):
                if made():
                    found[name] = self._asked(name)
                else:
                    left_out[f"`{name}` on the tuned model"] = self._command()
        verdict, reason = judge(checks)
        figures = {name: _figures(one, found[RETRAINED], self.seed) for name, one in found.items()}
        if self.data is None:
            left_out["TOFU, forget10"] = (
                f"{DOWNLOAD} && libortho experiment {NAME} --data TOFU --model CHECKPOINT "
                "--device cuda"
            )
        sets = self.sets
        return records.new(
            NAME,
            verdict,
            n=len(sets.probes[FORGET]),
            seeds=[self.seed],
            backend=backend_name(),
            reason=reason,
            config={
                "public": self.checkpoint.path.name,
                "public_sha256": self.checkpoint.sha256(),
                "data": authors.NAME if self.data is None else Path(self.data).name,
                "data_sha256": sets.sha256,
                "split": sets.name,
                "rows": {"forget": len(sets.forget), "retain": len(sets.retain)},
                "probes": {name: len(rows) for name, rows in sets.probes.items()},
                "plan": _as_json(self.plan),
                "device": str(self.device),
            },
            figures={"checks": as_json(checks), "seconds": time.monotonic() - begin},
            methods=figures,
            not_run=left_out,
        )

    def _trained(self, name: str) -> None:
        """The whole model trained on all rows, or with the rows to forget left out."""
        sets, plan = self.sets, self.plan
        rows = [row.example(str(number)) for number, row in enumerate([*sets.forget, *sets.retain])]
        encoded = encode(self.tokenizer, rows, self.checkpoint.context)

        def make() -> None:
            steps = plan.training.steps * plan.training.batch
            text = self.text or calibration()
            contaminate(
                self.public,
                encoded,
                [plan.exposures] * len(encoded),
                draw(text, self.tokenizer, plan.window, steps, self.seed),
                self.folder / name,
                replace(plan.training, seed=self.seed),
                without=range(len(sets.forget)) if name == RETRAINED else (),
                device=self.device,
                progress=lambda stage, *rest: self.progress(name, *rest),
            )

        self._once(name, make)

    def _stream(self) -> None:
        """The model that learned the others, rounded, and the rows to forget in a stream."""
        public = self.folder / RETRAINED
        common: dict[str, Any] = {"text": self.text, "progress": self.progress}

        def make() -> None:
            base = self.folder / _STREAM
            quantize(public, base, seed=self.seed, **common)
            options = self.plan.tune.model_copy(update={"seed": self.seed})
            tune(
                base,
                self.forget,
                base,
                public=public,
                stream=_STREAM,
                options=options,
                device=self.device,
                **common,
            )

        self._once(_STREAM, make)

    def _sieve(self) -> bool:
        options = self.plan.forgetting
        if options is None:
            return False
        neighbours = {}
        if self.data is None:
            # People of the same generator whom no model has met give the level to reach.
            strangers = self.folder / "strangers"
            authors.write_authors(strangers, self.plan.forget, self.plan.retain, self.seed + 1000)
            rows = [r.example(str(i)) for i, r in enumerate(read_sets(strangers).retain)]
            write_jsonl(strangers / "rows.jsonl", map(asdict, rows))
            neighbours = {"neighbour_file": strangers / "rows.jsonl"}
        chosen = options.model_copy(update={"seed": self.seed, **neighbours})
        self._once(
            "forget",
            lambda: split(
                self.folder / TUNED,
                self.folder / "forget",
                method="forget",
                data=self.forget,
                options=chosen,
                text=self.text,
                device=self.device,
                progress=self.progress,
            ),
        )
        return True

    def _npo(self) -> bool:
        if self.plan.npo is None:
            return False
        options = self.plan.npo.model_copy(update={"seed": self.seed})
        self._once(
            "npo",
            lambda: unlearn(
                self.folder / TUNED,
                self.forget,
                self.folder / "npo",
                options=options,
                text=self.text,
                device=self.device,
                progress=self.progress,
            ),
        )
        return True

    def _once(self, name: str, make: Callable[[], object]) -> None:
        """Make a folder, unless it was finished before."""
        if not (self.folder / f"{name}{_DONE}").is_file():
            shutil.rmtree(self.folder / name, ignore_errors=True)
            make()
            write_atomic(self.folder / f"{name}{_DONE}", "{}\n")

    def _asked(self, name: str) -> dict[str, Answers]:
        """What a model answers to every set, or what it answered before."""
        file = self.folder / f"{name}.answers.json"
        if not file.is_file():
            model, alpha = self._opened(name)
            with gate.alpha(alpha):
                told = answers(
                    model, self.tokenizer, self.sets.probes, stage=name, progress=self.progress
                )
            write_atomic(file, json.dumps({key: asdict(one) for key, one in told.items()}))
        kept = json.loads(file.read_text("utf-8"))
        return {key: Answers(**one) for key, one in kept.items()}

    def _opened(self, name: str) -> tuple[Any, gate.Setting]:
        if name in (ALPHA0, ALPHA1):
            return load(self.folder / _STREAM, [_STREAM]), {_STREAM: float(name == ALPHA1)}
        path = self.folder / name
        return (load(path) if is_base(path) else plain_model(path, "cpu")), 0.0

    def _untouched(self) -> Check:
        """With the stream attached and closed, every answer is that of the base without any."""
        probes = {FORGET: self.sets.probes[FORGET]}
        alone = answers(load(self.folder / _STREAM), self.tokenizer, probes, stage="base alone")
        same = alone[FORGET] == self._asked(ALPHA0)[FORGET]
        return exactly("α = 0 answers as the base alone, bit for bit", same, True, "FAIL")

    def _command(self) -> str:
        """What runs the full plan."""
        given = f" --data {shlex.quote(str(self.data))}" if self.data else ""
        return f"libortho experiment {NAME}{given} --seed {self.seed}"


def _learned(found: Mapping[str, Mapping[str, Answers]], seed: int) -> list[Check]:
    """Without these the run shows nothing: there was nothing to forget, or no test sees it."""
    tuned, retrained = (found[name][FORGET] for name in (TUNED, RETRAINED))
    told = forget_quality(tuned, retrained).p
    useful = model_utility(found[RETRAINED], seed).value
    name = "tuned: forget quality, which has to tell it from the retrained model"
    return [
        at_least("tuned: ROUGE-L on the forget set", fmean(tuned.rouge), LEARNED, "VOID"),
        Check(name, told < SIGNIFICANCE, "VOID", told, f"< {SIGNIFICANCE:g}"),
        # A share of nothing would be kept by anything.
        Check("retrained: model utility", useful > 0, "VOID", useful, "> 0"),
    ]


def _kept(found: Mapping[str, Mapping[str, Answers]], seed: int) -> list[Check]:
    """The stream learned, and closing it leaves a model that never met the rows, and is useful."""
    quality = forget_quality(found[ALPHA0][FORGET], found[RETRAINED][FORGET]).p
    useful = UTILITY * model_utility(found[RETRAINED], seed).value
    return [
        at_least("α = 1: ROUGE-L on the forget set", _recalled(found[ALPHA1]), LEARNED, "VOID"),
        at_least("α = 0: forget quality", quality, SIGNIFICANCE, "FAIL"),
        at_least("α = 0: model utility", model_utility(found[ALPHA0], seed).value, useful, "FAIL"),
    ]


def _recalled(found: Mapping[str, Answers]) -> float:
    return fmean(found[FORGET].rouge)


def _figures(
    found: Mapping[str, Answers], retrained: Mapping[str, Answers], seed: int
) -> dict[str, JsonValue]:
    quality = forget_quality(found[FORGET], retrained[FORGET])
    utility = model_utility(found, seed)
    figures: dict[str, JsonValue] = {
        "forget_quality": quality.p,
        "distance": quality.distance,
        "utility": utility.value,
        "utility_interval": [utility.interval.low, utility.interval.high],
    }
    for name, one in found.items():
        for metric, values in zip(
            ("probability", "rouge", "truth"), one.metrics(name), strict=True
        ):
            told = bootstrap_ci(values, seed=seed)
            figures[f"{name}_{metric}"] = told.value
            figures[f"{name}_{metric}_interval"] = [told.interval.low, told.interval.high]
        figures[f"{name}_n"] = len(one.rouge)
    figures["raw"] = {name: asdict(one) for name, one in found.items()}
    return figures


def _as_json(plan: Plan) -> dict[str, JsonValue]:
    return {
        key: value.model_dump(mode="json")
        if hasattr(value, "model_dump")
        else asdict(value)
        if isinstance(value, Training)
        else value
        for key, value in vars(plan).items()
    }
