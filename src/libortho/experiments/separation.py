"""``separation``: every way to take a mixed model apart, on the same natural contamination.

One public model is trained on with canaries among public text. Each measured method and each
baseline is then given that model, the exact ways what they need beside it, and all are looked at
with the secrets that the contaminated model recites.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from libortho import gate, records
from libortho.checkpoint import Checkpoint, resolve
from libortho.errors import NumericsError
from libortho.evaluate.arithmetic import make_problems
from libortho.evaluate.perplexity import perplexity, token_nll
from libortho.experiments.claim import claim
from libortho.experiments.family import SEEDS
from libortho.experiments.gates import gates
from libortho.experiments.mixed import Bench, Look, by_exposure, look, opened
from libortho.experiments.power import power
from libortho.experiments.restored import beyond_half_precision, codes_unlike
from libortho.experiments.separation_plan import FULL, Plan, plan_json
from libortho.experiments.separation_ways import (
    CONTAMINATED,
    EXACT,
    HALF,
    Material,
    Setting,
    Way,
    Ways,
    contaminated,
)
from libortho.experiments.states import backend_name
from libortho.experiments.turns import turn
from libortho.experiments.verdict import Check, as_json, at_least, judge
from libortho.privacy.canaries import make_canaries
from libortho.privacy.encode import encode
from libortho.privacy.mix import halves, strata
from libortho.privacy.score import score
from libortho.progress import Progress, silent
from libortho.records import Record, write_atomic
from libortho.streams.ortho import STREAM_FOLDER
from libortho.texts import Text, calibration, draw, heldout, replay, windows
from libortho.tune.prepare import plain_model

NAME = "separation"
_POOL = 4000
_LEAST_RECITED = 0.25
_FELL = ".failed.json"
"""Of a row that diverged: what came of it, and an id by which a later process knows it is old."""


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
    """One record per seed; a run of the same plan in ``folder`` goes on after the last row done.

    Several processes may be started on one ``folder``: they share the rows out among them, and each
    gives the whole record. A row that diverges makes the run VOID, in every process that is at
    that seed then; a run that is begun later tries it again.

    Args:
        folder: gets ``separation/seed-N``.
        text: public text for contamination, factors and replay; default the shipped samples.

    Raises:
        ConfigError: the folder holds rows of another plan; what differs is told.
    """
    return [
        _run(Setting(public, folder / NAME / f"seed-{seed}", plan, seed, device, text, progress))
        for seed in seeds
    ]


def _run(setting: Setting) -> Record:
    begin = time.monotonic()
    stage = _Stage(setting)
    plan = setting.plan
    recited = len(stage.known) / plan.members
    checks = [at_least("recall of the contaminated model", recited, _LEAST_RECITED, "VOID")]
    methods: dict[str, dict[str, JsonValue]] = {}
    if checks[0].held:  # nothing can be taken out of a model that knows nothing
        methods = stage.rows()
    failed = [name for name, figures in methods.items() if "failed" in figures]
    checks += [Check(name, False, "VOID", str(methods[name]["failed"]), "a row") for name in failed]
    powers = {} if failed else power(methods, stage.named_places)
    for name, figures in methods.items():
        figures.setdefault("ppl_fp", methods[CONTAMINATED].get("ppl_fp"))
        if name in powers:
            broken = [one for one in powers[name] if not one.held]
            figures["power"] = as_json(powers[name])
            figures["void"] = judge(broken)[1] if broken else None
    # A residual base was never promised to give the checkpoint back: such a row is VOID alone.
    checks += [
        one for name, found in powers.items() if not name.startswith("residual") for one in found
    ]
    verdict, reason = judge(checks)
    return records.new(
        NAME,
        verdict,
        n=len(stage.known),
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
            "recited": len(stage.known),
            "recited_by_exposure": _counts(stage.recited),
            "void_rows": [name for name, one in methods.items() if one.get("void")],
            "checks": as_json(checks),
            "gates": as_json(gates(methods, methods[CONTAMINATED]) if powers else []),
            "seconds": time.monotonic() - begin,
        },
        methods=methods,
    )


class _Stage:
    """The contaminated model of one seed, and what each method makes of it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        plan, folder = setting.plan, setting.folder
        self.earlier = {
            json.loads(one.read_text("utf-8"))["id"] for one in folder.glob(f"*{_FELL}")
        }
        # Training on text without sums would cost an ability that no method has touched.
        text = setting.text or replay()
        self.canaries = make_canaries(plan.members, setting.seed)
        problems = make_problems(plan.problems, setting.seed)
        claim(
            folder,
            NAME,
            {
                "public_sha256": Checkpoint(setting.public).sha256(),
                "canaries_sha256": self.canaries.sha256,
                "text_sha256": text.sha256,
                "calibration_sha256": (setting.text or calibration()).sha256,
                "plan": plan_json(plan),
            },
            leaves=[CONTAMINATED],
        )
        data = folder / "members.jsonl"
        self.canaries.write(data, folder / "controls.jsonl")
        tokenizer = Checkpoint(setting.public).tokenizer()
        members = encode(tokenizer, self.canaries.members)
        exposures = strata(plan.members, plan.exposures)
        pool = draw(text, tokenizer, plan.window, _POOL, setting.seed)
        made = Material(self.canaries, members, exposures, data, (), pool)
        mixed = folder / CONTAMINATED
        with turn(folder, CONTAMINATED):
            contaminated(setting, made, mixed)
        # Training on a GPU comes out differently each time; rows are of one model only.
        claim(folder, CONTAMINATED, {"sha256": Checkpoint(mixed).sha256()})
        exact = [one.exact for one in score(plain_model(mixed, setting.device), members)]
        self.recited = by_exposure([int(flag) for flag in exact], exposures)
        # What is not recited by the mixed model cannot be taken out of it.
        self.known = [index for index, flag in enumerate(exact) if flag]
        shown = [exposures[index] for index in self.known]
        self.named_places, self.unnamed_places = halves(shown, setting.seed)
        named = [self.known[place] for place in self.named_places]
        self.ways = Ways(setting, replace(made, named=named))
        context = Checkpoint(setting.public).config.get_text_config().max_position_embeddings
        self.bench = Bench(
            tokenizer,
            [members[index] for index in self.known],
            shown,
            encode(tokenizer, self.canaries.controls),
            windows(heldout(), tokenizer, min(context, 512), plan.tokens),
            problems,
            plan.relearn_steps,
            setting.seed,
        )

    def rows(self) -> dict[str, dict[str, JsonValue]]:
        """The figures of every row: those nobody is at are made here, others are waited for."""
        ways = self.ways.all()
        made: dict[str, dict[str, JsonValue]] = {}
        for wait in (False, True):
            for name, way in ways.items():
                if name not in made:
                    with turn(self.setting.folder, f"row-{name}", wait=wait) as ours:
                        if ours:
                            made[name] = self._row(name, way)
        return {name: made[name] for name in ways}

    def _row(self, name: str, way: Way) -> dict[str, JsonValue]:
        """Make what a method leaves, look at it, and keep the figures for a run that goes on."""
        folder = self.setting.folder
        file, fell = folder / f"{name}.json", folder / f"{name}{_FELL}"
        if file.is_file():
            kept: dict[str, JsonValue] = json.loads(file.read_text("utf-8"))
            return kept
        if fell.is_file():
            noted = json.loads(fell.read_text("utf-8"))
            if noted["id"] not in self.earlier:  # it fell while this process was under way
                found: dict[str, JsonValue] = noted["figures"]
                return found
        path = folder / name
        if name != CONTAMINATED:
            shutil.rmtree(path, ignore_errors=True)
        begin = time.monotonic()
        try:
            way.make(path)
            seconds = time.monotonic() - begin
            looked = self._looked(name, way, path)
        except NumericsError as error:
            # One method that diverged does not cost the rows of the others; it is tried again.
            told = f"{type(error).__name__}: {error}"
            failed: dict[str, JsonValue] = {
                "guarantee": way.guarantee,
                "failed": told,
                "void": told,
            }
            write_atomic(fell, json.dumps({"id": secrets.token_hex(8), "figures": failed}))
            return failed
        figures = {
            **looked,
            "guarantee": way.guarantee,
            "stands_for": way.stands_for,
            "seconds": seconds,
            **_stored(path),
            **self._weights(name, way, path),
        }
        write_atomic(file, json.dumps(figures))
        return figures

    def _looked(self, name: str, way: Way, path: Path) -> dict[str, JsonValue]:
        setting, bench = self.setting, self.bench
        if name == HALF:
            bench = bench.among(self.named_places)
        model, states = opened(path, setting.device)
        looks: dict[str, Look] = {}
        for state, alpha in states.items():
            with gate.alpha(alpha):
                looks[state] = look(
                    model,
                    bench,
                    attacked=way.attacked and state != "alpha1",
                    stage=f"{name}: {state}",
                    progress=setting.progress,
                )
        figures = _figures(looks, bench)
        if name == HALF:
            unnamed = self.bench.among(self.unnamed_places).members
            found = score(model, unnamed, stage="unnamed", progress=setting.progress)
            figures["recall_unnamed"] = sum(one.exact for one in found) / max(1, len(unnamed))
        if way.densities:
            figures["sweep"] = self._sweep(name, way, model, looks)
        if name == "tune":
            plain = plain_model(resolve(setting.public), setting.device)
            nll = token_nll(plain, bench.heldout, stage="public", progress=setting.progress)
            figures["ppl_fp"] = perplexity(nll)
        return figures

    def _sweep(self, name: str, way: Way, model: Any, looks: Mapping[str, Look]) -> list[JsonValue]:
        """The open gate at every density of the stream; without a stream it is the base alone."""
        points: list[JsonValue] = []
        for density, stream in way.densities.items():
            found = looks["alpha0"]
            if stream is not None:
                with gate.alpha({stream: 1.0}):
                    found = look(
                        model,
                        self.bench,
                        attacked=False,
                        stage=f"{name}: {density:g}",
                        progress=self.setting.progress,
                    )
            values = {k: v for k, v in found.values.items() if not k.startswith(_ATTACKS)}
            points.append({"density": density, **values})
        return points

    def _weights(self, name: str, way: Way, path: Path) -> dict[str, JsonValue]:
        """What base and stream give back at α = 1, weight by weight, where a way promises it."""
        folder = self.setting.folder
        if name in EXACT:
            ids = [_base_id(path), _base_id(folder / "base")]
            return {"base_is_public": ids[0] == ids[1]}
        if name.startswith("curvature"):
            return {"weights_beyond_fp16": beyond_half_precision(path, folder / CONTAMINATED)}
        if way.restores is not None:
            codes, weights = codes_unlike(path, way.restores().path)
            return {"codes_unlike": codes, "weights_unlike": weights}
        return {}


_ATTACKS = ("relearn", "recall_requantised")


def _figures(looks: Mapping[str, Look], bench: Bench) -> dict[str, JsonValue]:
    figures: dict[str, JsonValue] = {
        "members": len(bench.members),
        "controls": len(bench.controls),
    }
    raw: dict[str, dict[str, JsonValue]] = {"nll": {}, "exact": {}}
    for state, one in looks.items():
        for key, value in one.values.items():
            name = f"nll_{state}_controls" if key == "nll_controls" else f"{key}_{state}"
            figures[name] = value
        figures[f"recall_by_exposure_{state}"] = _counts(one.strata)
        raw["nll"][state] = {"members": list(one.nll[0]), "controls": list(one.nll[1])}
        raw["exact"][state] = {"members": list(one.exact[0]), "controls": list(one.exact[1])}
    return figures | {"raw": dict(raw)}


def _counts(by: Mapping[int, tuple[int, int]]) -> dict[str, JsonValue]:
    return {str(times): list(pair) for times, pair in by.items()}


def _stored(path: Path) -> dict[str, JsonValue]:
    file = path / STREAM_FOLDER / "private" / "stream.json"
    if not file.is_file():
        return {}
    manifest = json.loads(file.read_text("utf-8"))
    return {"density": manifest["density"], "made_with": manifest["made_with"]}


def _base_id(path: Path) -> str:
    return str(json.loads((path / "libortho.json").read_text("utf-8"))["base_id"])
