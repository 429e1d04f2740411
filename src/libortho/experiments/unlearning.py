"""``unlearning``: does closing a stream look like never having been trained on its data?

The rows to forget are learned in three ways: by the whole model together with the others, not at
all, and by a private stream over the rounded model that learned the others alone. Tenants then
share that base: each has a part of the rows in a stream of its own. TOFU's metrics (Maini et al.
2024, arXiv 2401.06121) say how each of them answers.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from libortho import gate, records
from libortho.baselines import unlearn
from libortho.checkpoint import Checkpoint
from libortho.evaluate import sums
from libortho.evaluate.forgetting import Answers, answers
from libortho.experiments.claim import claim
from libortho.experiments.natural import contaminate
from libortho.experiments.states import backend_name
from libortho.experiments.unlearning_plan import FULL, Plan
from libortho.experiments.unlearning_rules import (
    ALPHA0,
    ALPHA1,
    RETRAINED,
    TUNED,
    by_tenant,
    figures,
    kept,
    learned,
    separate,
)
from libortho.experiments.unlearning_tenants import parts
from libortho.experiments.verdict import Check, as_json, exactly, judge
from libortho.model import load
from libortho.privacy import authors
from libortho.privacy.encode import encode
from libortho.privacy.private_set import write_jsonl
from libortho.privacy.questions import (
    DOWNLOAD,
    FORGET,
    PROBES,
    QuestionSets,
    read_sets,
    write_questions,
)
from libortho.progress import Progress, silent
from libortho.quantize import quantize
from libortho.records import Record, write_atomic
from libortho.split import split
from libortho.streams.ortho import STREAM_FOLDER
from libortho.texts import Text, draw, replay
from libortho.tune import tune
from libortho.tune.prepare import is_base, plain_model

NAME = "unlearning"
BASE, STREAM, TENANTS = "base", "private", "tenants"


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
        text: public text that goes along with training; default the shipped replay text.

    Raises:
        ConfigError: ``data`` lacks files, all of them are named; or a tenant has no question.
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
        self.shown = text or replay()
        self.checkpoint = Checkpoint(public)
        self.tokenizer = self.checkpoint.tokenizer()
        if data is None:
            drawn = folder / f"authors-{seed}-{plan.forget}-{plan.retain}-{plan.probes}"
            authors.write_authors(drawn, plan.forget, plan.retain, seed)
            known = sums.draw_sums(plan.probes, seed)
            write_questions(drawn / f"{sums.NAME}{PROBES}", known, probes=True)
            sets = read_sets(drawn)
        else:
            sets = read_sets(data)
        self.sets: QuestionSets = sets.shortened(plan.probes)
        asked = {
            "public_sha256": self.checkpoint.sha256(),
            "data_sha256": sets.sha256,
            "text_sha256": self.shown.sha256,
            **plan.as_json(),
        }
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = folder / f"seed-{seed}-{key}"
        claim(self.folder, NAME, asked)
        self.seconds = 0.0
        rows = [row.example(f"{FORGET}-{i}") for i, row in enumerate(sets.forget)]
        self.forget = self.folder / "forget.jsonl"
        write_jsonl(self.forget, map(asdict, rows))
        self.tenants = parts(self.sets, plan.tenants)
        for name, part in self.tenants.items():
            write_jsonl(self.folder / f"{name}.jsonl", (asdict(rows[index]) for index in part.rows))

    def record(self) -> Record:
        self._trained(TUNED)
        self._trained(RETRAINED)
        found = {TUNED: self._asked(TUNED), RETRAINED: self._asked(RETRAINED)}
        checks = learned(found, self.seed)
        left_out = {}
        # What shows that the run says nothing is looked at before the rest is trained.
        if all(check.held for check in checks):
            self._rounded()
            self._taught(STREAM, self.forget)
            found |= {state: self._asked(state) for state in (ALPHA0, ALPHA1)}
            checks += [*kept(found, self.seed), self._untouched(found)]
            checks += self._apart(found)
            for name, made in (("forget", self._sieve), ("npo", self._npo)):
                if made():
                    found[name] = self._asked(name)
                else:
                    left_out[f"`{name}` on the tuned model"] = self._command()
        verdict, reason = judge(checks)
        methods = {name: figures(one, found[RETRAINED], self.seed) for name, one in found.items()}
        questions = {name: part.questions for name, part in self.tenants.items()}
        for state in {ALPHA0, TENANTS, *questions} & found.keys():
            methods[state] |= by_tenant(found, state, questions, self.seed)
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
                "tenants": {name: len(part.rows) for name, part in self.tenants.items()},
                "text": self.shown.name,
                "text_sha256": self.shown.sha256,
                "plan": self.plan.as_json(),
                "device": str(self.device),
            },
            figures={"checks": as_json(checks), "seconds": self.seconds},
            methods=methods,
            not_run=left_out,
        )

    def _trained(self, name: str) -> None:
        """The whole model trained on all rows, or with the rows to forget left out."""
        sets, plan = self.sets, self.plan
        rows = [row.example(str(number)) for number, row in enumerate([*sets.forget, *sets.retain])]
        encoded = encode(self.tokenizer, rows, self.checkpoint.context)

        def make() -> None:
            steps = plan.training.steps * plan.training.batch
            contaminate(
                self.public,
                encoded,
                [plan.exposures] * len(encoded),
                draw(self.shown, self.tokenizer, plan.window, steps, self.seed),
                self.folder / name,
                replace(plan.training, seed=self.seed),
                without=range(len(sets.forget)) if name == RETRAINED else (),
                device=self.device,
                progress=lambda stage, *rest: self.progress(name, *rest),
            )

        self._once(name, make)

    def _rounded(self) -> None:
        """The model that learned the others, as the base of every stream."""
        self._once(
            BASE,
            lambda: quantize(
                self.folder / RETRAINED,
                self.folder / BASE,
                seed=self.seed,
                text=self.text,
                progress=self.progress,
            ),
        )

    def _taught(self, stream: str, rows: Path) -> None:
        """Rows to forget in a stream of the base."""
        base = self.folder / BASE
        self._once(
            stream,
            lambda: tune(
                base,
                rows,
                base,
                public=self.folder / RETRAINED,
                stream=stream,
                options=self.plan.tune.model_copy(update={"seed": self.seed}),
                text=self.text,
                device=self.device,
                progress=self.progress,
            ),
            base / STREAM_FOLDER / stream,
        )

    def _apart(self, found: dict[str, dict[str, Answers]]) -> list[Check]:
        """A stream a tenant on the same base; adds to ``found`` what each of them answers."""
        if not self.tenants:
            return []
        for name in self.tenants:
            self._taught(name, self.folder / f"{name}.jsonl")
        found |= {name: self._asked(name) for name in (*self.tenants, TENANTS)}
        questions = {name: part.questions for name, part in self.tenants.items()}
        return [
            *separate(found, questions),
            *(self._unread(found, name) for name in self.tenants),
        ]

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

    def _once(self, name: str, make: Callable[[], object], place: Path | None = None) -> None:
        """Make a folder, by default of that name, unless it was finished before."""

        def anew() -> dict[str, Any]:
            shutil.rmtree(place or self.folder / name, ignore_errors=True)
            make()
            return {}

        self._noted(f"{name}.done.json", anew)

    def _asked(self, name: str) -> dict[str, Answers]:
        """What a model answers to every set, or what it answered before."""

        def ask() -> dict[str, Any]:
            model, alpha = self._opened(name)
            with gate.alpha(alpha):
                told = answers(
                    model, self.tokenizer, self.sets.probes, stage=name, progress=self.progress
                )
            return {key: asdict(one) for key, one in told.items()}

        noted = self._noted(f"{name}.answers.json", ask)
        return {key: Answers(**one) for key, one in noted.items()}

    def _noted(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a stage found, or had found before, in a file; its time counts either way."""
        file = self.folder / name
        if not file.is_file():
            begin = time.monotonic()
            told = {"found": make(), "seconds": time.monotonic() - begin}
            write_atomic(file, json.dumps(told))
        noted: dict[str, Any] = json.loads(file.read_text("utf-8"))
        self.seconds += noted["seconds"]
        found: dict[str, Any] = noted["found"]
        return found

    def _opened(self, name: str) -> tuple[Any, gate.Setting]:
        if name in (ALPHA0, ALPHA1):
            return load(self.folder / BASE, [STREAM]), {STREAM: float(name == ALPHA1)}
        if name == TENANTS or name in self.tenants:
            opened = self.tenants if name == TENANTS else [name]
            return load(self.folder / BASE, [*self.tenants]), dict.fromkeys(opened, 1.0)
        path = self.folder / name
        return (load(path) if is_base(path) else plain_model(path, "cpu")), 0.0

    def _untouched(self, found: Mapping[str, Mapping[str, Answers]]) -> Check:
        """With the stream attached and closed, every answer is that of the base without any."""
        same = self._alone(None) == found[ALPHA0][FORGET]
        return exactly("α = 0 answers as the base alone, bit for bit", same, True, "FAIL")

    def _unread(self, found: Mapping[str, Mapping[str, Answers]], name: str) -> Check:
        """With the other tenants' streams attached, a tenant gets what its own alone gives."""
        same = self._alone(name) == found[name][FORGET]
        rule = f"{name} open answers as where no other stream is attached, bit for bit"
        return exactly(rule, same, True, "FAIL")

    def _alone(self, stream: str | None) -> Answers:
        """What the base answers of the rows to forget with no stream attached, or one alone, open.

        Kept beside the answers that it is held against: another machine may differ in a last bit.
        """

        def ask() -> dict[str, Any]:
            attached = [stream] if stream else []
            model = load(self.folder / BASE, attached)
            with gate.alpha(dict.fromkeys(attached, 1.0)):
                told = answers(
                    model,
                    self.tokenizer,
                    {FORGET: self.sets.probes[FORGET]},
                    stage=f"{stream or BASE} alone",
                    progress=self.progress,
                )
            return asdict(told[FORGET])

        return Answers(**self._noted(f"{stream or BASE}-alone.answers.json", ask))

    def _command(self) -> str:
        """What runs the full plan."""
        given = f" --data {shlex.quote(str(self.data))}" if self.data else ""
        return f"libortho experiment {NAME}{given} --seed {self.seed}"
