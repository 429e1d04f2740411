"""``separation``: every way to take a mixed model apart, on the same natural contamination.

One public model is trained on with canaries among public text. Each measured method and each
baseline is then given that model, and looked at with the secrets that it recites.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from libortho import gate, records
from libortho.baselines import prune, rounded, unlearn
from libortho.checkpoint import Checkpoint
from libortho.evaluate.arithmetic import make_problems
from libortho.experiments.family import SEEDS
from libortho.experiments.gates import gates
from libortho.experiments.mixed import Bench, Look, look, opened
from libortho.experiments.natural import contaminate
from libortho.experiments.separation_plan import FULL, Plan, plan_json
from libortho.experiments.states import backend_name
from libortho.experiments.verdict import as_json, at_least, judge
from libortho.privacy.canaries import CanarySet, make_canaries
from libortho.privacy.encode import encode
from libortho.privacy.mix import strata
from libortho.privacy.private_set import write_jsonl
from libortho.privacy.score import score
from libortho.progress import Progress, silent
from libortho.quantize import quantize
from libortho.records import Record, write_atomic
from libortho.split import split
from libortho.texts import Text, calibration, draw, heldout, windows
from libortho.tune.prepare import plain_model

NAME = "separation"
CONTAMINATED = "contaminated"
NEVER = "never-exposed"
_POOL = 4000
_LEAST_RECITED = 0.25


@dataclass(frozen=True)
class Setting:
    """What one run is made on; ``folder`` keeps what it leaves, so that it can go on."""

    public: str | Path
    folder: Path
    plan: Plan
    seed: int
    device: str | torch.device = "cpu"
    text: Text | None = None
    progress: Progress = silent


def separation(
    public: str | Path,
    folder: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    plan: Plan = FULL,
    device: str | torch.device = "cpu",
    text: Text | None = None,
    progress: Progress = silent,
) -> list[Record]:
    """One record per seed; a run in the same ``folder`` goes on after the last method done.

    Args:
        text: public text for contamination, factors and replay; default the shipped samples.
    """
    return [
        _run(Setting(public, folder / f"seed-{seed}", plan, seed, device, text, progress))
        for seed in seeds
    ]


def _run(setting: Setting) -> Record:
    begin = time.monotonic()
    setting.folder.mkdir(parents=True, exist_ok=True)
    stage = _Stage(setting)
    plan = setting.plan
    recited = len(stage.bench.members) / plan.members
    checks = [at_least("recall of the contaminated model", recited, _LEAST_RECITED, "VOID")]
    verdict, reason = judge(checks)
    methods: dict[str, dict[str, JsonValue]] = {}
    if verdict != "VOID":  # nothing can be taken out of a model that knows nothing
        methods = {name: stage.figures(name, make) for name, make in stage.methods().items()}
    for figures in methods.values():
        # What every method here stands for is the contaminated model.
        figures.setdefault("ppl_fp", methods[CONTAMINATED]["ppl_fp"])
    return records.new(
        NAME,
        verdict,
        n=len(stage.bench.members),
        seeds=[setting.seed],
        backend=backend_name(),
        reason=reason,
        config={
            "public": Path(setting.public).name,
            "canaries_sha256": stage.canaries.sha256,
            "device": str(setting.device),
            "plan": plan_json(plan),
        },
        figures={
            "members": plan.members,
            "recited": len(stage.bench.members),
            "recited_by_exposure": stage.recited_by_exposure,
            "checks": as_json(checks),
            "gates": as_json(gates(methods, methods[CONTAMINATED])) if methods else [],
            "seconds": time.monotonic() - begin,
        },
        methods=methods,
    )


class _Stage:
    """The contaminated model of one seed, and what each method makes of it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        plan, folder = setting.plan, setting.folder
        self.canaries: CanarySet = make_canaries(plan.members, setting.seed)
        self.data = folder / "members.jsonl"
        self.canaries.write(self.data, folder / "controls.jsonl")
        self.text = setting.text or calibration()
        tokenizer = Checkpoint(setting.public).tokenizer()
        self.members = encode(tokenizer, self.canaries.members)
        controls = encode(tokenizer, self.canaries.controls)
        self.exposures = strata(plan.members, plan.exposures)
        self.windows = draw(self.text, tokenizer, plan.window, _POOL, setting.seed)
        self.mixed = folder / CONTAMINATED
        self._contaminate(self.mixed, ())
        exact = [one.exact for one in score(plain_model(self.mixed, setting.device), self.members)]
        self.recited_by_exposure: dict[str, JsonValue] = {
            str(times): [
                sum(
                    flag
                    for flag, shown in zip(exact, self.exposures, strict=True)
                    if shown == times
                ),
                self.exposures.count(times),
            ]
            for times in sorted(set(self.exposures))
        }
        # What is not recited by the mixed model cannot be taken out of it.
        self.known = [index for index, flag in enumerate(exact) if flag]
        context = Checkpoint(setting.public).config.get_text_config().max_position_embeddings
        self.bench = Bench(
            tokenizer,
            [self.members[index] for index in self.known],
            controls,
            windows(heldout(), tokenizer, min(context, 512), plan.tokens),
            make_problems(plan.problems, setting.seed),
            plan.relearn_steps,
            setting.seed,
        )

    def methods(self) -> Mapping[str, Callable[[Path], None]]:
        """Every method and baseline by name, as what it writes into a folder."""
        plan = self.setting.plan
        return {
            CONTAMINATED: self._copy,
            NEVER: self._never,
            **{f"residual-{bits}": self._residual(bits) for bits in plan.bits},
            "curvature": self._split("curvature", plan.curvature),
            "forget": self._split("forget", plan.forget),
            "forget-half": self._half,
            "forget-alone": self._split("forget", _with(plan.forget, neighbour_weight=0.0)),
            "mask": self._split("forget", _with(plan.forget, rule="mask")),
            "ssd": self._split("forget", _with(plan.forget, rule="ssd", density=0.003)),
            "wanda": self._pruned("wanda"),
            "sparsegpt": self._pruned("sparsegpt"),
            "npo": self._unlearned("npo"),
            "graddiff": self._unlearned("graddiff"),
        }

    def figures(self, name: str, make: Callable[[Path], None]) -> dict[str, JsonValue]:
        """Make what a method leaves, look at it, and keep the figures for a run that goes on."""
        folder, setting = self.setting.folder, self.setting
        file = folder / f"{name}.json"
        if file.is_file():
            kept: dict[str, JsonValue] = json.loads(file.read_text("utf-8"))
            return kept
        path = folder / name
        if name != CONTAMINATED:
            shutil.rmtree(path, ignore_errors=True)
        begin = time.monotonic()
        make(path)
        seconds = time.monotonic() - begin
        bench = self.bench
        if name == "forget-half":
            bench = replace(bench, members=[self.members[index] for index in self._named()])
        model, states = opened(path, setting.device)
        looks: dict[str, Look] = {}
        for state, alpha in states.items():
            with gate.alpha(alpha):
                looks[state] = look(
                    model,
                    bench,
                    attacked=state != "alpha1",
                    stage=f"{name}: {state}",
                    progress=setting.progress,
                )
        figures = _figures(looks, bench) | {"seconds": seconds} | _stored(path)
        if name == "forget-half":
            unnamed = [self.members[index] for index in self.known[1::2]]
            found = score(model, unnamed, stage="unnamed", progress=setting.progress)
            figures["recall_unnamed"] = sum(one.exact for one in found) / max(1, len(unnamed))
        write_atomic(file, json.dumps(figures))
        return figures

    def _contaminate(self, out: Path, without: Sequence[int]) -> None:
        if (out / "tokenizer.json").is_file():
            return
        shutil.rmtree(out, ignore_errors=True)
        setting = self.setting
        contaminate(
            setting.public,
            self.members,
            self.exposures,
            self.windows,
            out,
            replace(setting.plan.training, seed=setting.seed),
            without=without,
            device=setting.device,
            progress=setting.progress,
        )

    def _copy(self, path: Path) -> None:
        assert path == self.mixed

    def _never(self, path: Path) -> None:
        """Trained on the same text in the same order, every secret left out, then rounded."""
        plain = path.with_name(f"{path.name}-plain")
        self._contaminate(plain, range(len(self.members)))
        self._round(plain, path)

    def _round(self, plain: Path, path: Path) -> None:
        """As the residual base is rounded, so that all are compared at one width."""
        setting = self.setting
        rounding = setting.plan.residual.quantize_with(setting.text)
        quantize(plain, path, **rounding, progress=setting.progress)

    def _split(self, method: Any, options: Any, data: Path | None = None) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            setting = self.setting
            split(
                self.mixed,
                path,
                method=method,
                data=data or self.data,
                text=setting.text,
                options=_with(options, seed=setting.seed),
                device=setting.device,
                progress=setting.progress,
            )

        return make

    def _residual(self, bits: int) -> Callable[[Path], None]:
        if bits <= 4:
            return self._split("residual", _with(self.setting.plan.residual, bits=bits))

        def make(path: Path) -> None:
            rounded(self.mixed, path, bits=bits)

        return make

    def _named(self) -> list[int]:
        return self.known[::2]

    def _half(self, path: Path) -> None:
        """Only every other secret is named; what becomes of the rest tells what was unlearned."""
        data = self.setting.folder / "named.jsonl"
        write_jsonl(data, [asdict(self.canaries.members[index]) for index in self._named()])
        self._split("forget", self.setting.plan.forget, data)(path)

    def _pruned(self, rule: Any) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            plain = path.with_name(f"{path.name}-plain")
            shutil.rmtree(plain, ignore_errors=True)
            density = self.setting.plan.forget.density
            prune(self.mixed, plain, self.windows[:64], rule=rule, density=density)
            self._round(plain, path)

        return make

    def _unlearned(self, objective: str) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            setting = self.setting
            plain = path.with_name(f"{path.name}-plain")
            shutil.rmtree(plain, ignore_errors=True)
            unlearn(
                self.mixed,
                self.data,
                plain,
                options=_with(setting.plan.unlearn, objective=objective, seed=setting.seed),
                text=setting.text,
                device=setting.device,
                progress=setting.progress,
            )
            self._round(plain, path)

        return make


def _figures(looks: Mapping[str, Look], bench: Bench) -> dict[str, JsonValue]:
    figures: dict[str, JsonValue] = {
        "guarantee": "measured",
        "members": len(bench.members),
        "controls": len(bench.controls),
    }
    raw: dict[str, dict[str, JsonValue]] = {"nll": {}, "exact": {}}
    for state, one in looks.items():
        for key, value in one.values.items():
            name = f"nll_{state}_controls" if key == "nll_controls" else f"{key}_{state}"
            figures[name] = value
        raw["nll"][state] = {"members": list(one.nll[0]), "controls": list(one.nll[1])}
        raw["exact"][state] = {"members": list(one.exact[0]), "controls": list(one.exact[1])}
    return figures | {"raw": dict(raw)}


def _stored(path: Path) -> dict[str, JsonValue]:
    files = sorted(path.glob("ortho/*/stream.json"))
    if not files:
        return {}
    manifest = json.loads(files[0].read_text("utf-8"))
    return {"density": manifest["density"], "made_with": manifest["made_with"]}


def _with(options: Any, **changes: Any) -> Any:
    return options.model_copy(update=changes)
