"""The three ways in, made from scratch: `tune`, LoRA → `delta`, LoRA → `residual`.

The base and its `repair` are made before any canary exists in the process.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, JsonValue

from libortho.checkpoint import Checkpoint, resolve
from libortho.errors import ConfigError
from libortho.experiments.claim import claim
from libortho.experiments.lora import LORA_OPTIONS, MERGED, memorise
from libortho.experiments.states import Way
from libortho.gate import REPAIR, Setting
from libortho.privacy.canaries import CanarySet, make_canaries
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.private_set import encode_jsonl
from libortho.progress import Progress, silent
from libortho.quantize import quantize
from libortho.records import write_atomic
from libortho.repair import RepairOptions, repair
from libortho.split import OPTIONS as DELTA_OPTIONS
from libortho.split import DeltaOptions, ResidualOptions, split
from libortho.streams.base import BaseStream
from libortho.streams.ortho import STREAM_FOLDER
from libortho.texts import Text
from libortho.texts import replay as shipped_replay
from libortho.tune import TuneOptions, replay_windows, tune, tune_options
from libortho.tune.prepare import is_base, plain_model
from libortho.tune.replay import Replay

Curve = list[dict[str, float]]
_TEACHER_BATCH = 16
_OUTPUTS = {
    "tuned": ("tune",),
    "merged": ("lora",),
    "delta": ("delta",),
    "residual": ("residual",),
}
_STAGE = ".stage.json"
STATES: Mapping[str, Any] = {
    "alpha0": 0.0,
    "repair": {"repair": 1.0},
    "alpha1": {"repair": 1.0, "private": 1.0},
}


@dataclass(frozen=True)
class Plan:
    """How much of everything: the demo and the experiment differ in this alone.

    Attributes:
        members: canaries that are trained on; as many controls are not.
    """

    members: int
    tune: TuneOptions
    lora: TuneOptions
    delta: DeltaOptions
    residual: ResidualOptions
    repair: RepairOptions


# A demo waits for nothing that its verdict does not need: short settling, few steps on `repair`.
_SETTLE = 15
DEMO = Plan(
    members=20,
    tune=tune_options(settle=_SETTLE),
    lora=LORA_OPTIONS,
    delta=DELTA_OPTIONS.model_copy(update={"settle": _SETTLE}),
    residual=ResidualOptions(),
    repair=RepairOptions(steps=40),
)


@dataclass
class Made:
    """Everything on disk that an evaluation needs.

    Attributes:
        curves: per way, per training run, the entries of its curve.
        seconds: per way, wall time of making it.
    """

    base: BaseStream
    canaries: CanarySet
    members: list[Encoded]
    controls: list[Encoded]
    merged: Path
    ways: list[Way]
    curves: dict[str, dict[str, list[dict[str, float]]]]
    seconds: dict[str, float]


def make_base(
    public: str | Path,
    folder: Path,
    plan: Plan,
    *,
    text: Text | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> BaseStream:
    """Quantise the public checkpoint and add its public `repair` stream, unless both are there.

    Raises:
        ConfigError: the base there is of another checkpoint, text or `repair`.
    """
    path = folder / "base"
    asked = _asked(public, text) | {"repair": _json(plan.repair)}
    claim(folder, "base", asked, leaves=[path.name])
    base = (
        BaseStream.open(path)
        if is_base(path)
        else quantize(public, path, text=text, progress=progress)
    )
    if not (path / STREAM_FOLDER / REPAIR).is_dir():
        repair(base, public, text=text, options=plan.repair, device=device, progress=progress)
    return base


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the ways of one seed lie."""
    return folder / f"seed-{seed}"


def make_ways(
    public: str | Path,
    folder: Path,
    plan: Plan,
    *,
    seed: int,
    wanted: Sequence[str] = ("tune", "delta", "residual"),
    text: Text | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Made:
    """Make the base, draw canaries, memorise them twice over, and split.

    Every stage leaves a directory and a ``*.stage.json``; a run of the same plan in the same
    ``folder`` goes on after the last stage that was finished.

    Args:
        folder: gets ``base``, and the ways in its ``seed_folder``.
        wanted: ways to make; ``delta`` and ``residual`` need a LoRA that ``tune`` does not.

    Raises:
        ConfigError: ``folder`` holds other canaries, or what was made with other options.
    """
    common: dict[str, Any] = {"text": text, "device": device, "progress": progress}
    base = make_base(public, folder, plan, **common)
    folder = seed_folder(folder, seed)
    folder.mkdir(parents=True, exist_ok=True)
    canaries = make_canaries(plan.members, seed)
    data = folder / "members.jsonl"
    _keep(canaries, data, folder / "controls.jsonl")
    how = {key: _json(getattr(plan, key)) for key in ("tune", "lora", "delta", "residual")}
    stages_there = [f"{stage}{_STAGE}" for stage in _OUTPUTS]
    asked = _asked(public, text) | {"base": base.id, **how}
    claim(folder, "ways", asked, leaves=stages_there)
    tokenizer = base.checkpoint.tokenizer()
    members, controls = (encode(tokenizer, half) for half in (canaries.members, canaries.controls))
    options = plan.tune.model_copy(update={"seed": seed})
    replay = Replay(replay_windows(tokenizer, options, text), plain_model(resolve(public), device))
    lora = folder / "lora"

    def tuned() -> Curve:
        replay.fill(_TEACHER_BATCH, progress)
        out = folder / "tune"
        return tune(
            base.path, data, out, public=public, options=options, replay=replay, **common
        ).curve

    def merged() -> Curve:
        settings = plan.lora.model_copy(update={"seed": seed})
        layers = list(base.layers)
        return memorise(
            public, members, replay, lora, layers, settings, device=device, progress=progress
        ).curve

    def delta() -> Curve:
        settings = plan.delta.model_copy(update={"seed": seed})
        return split(
            base.path,
            folder / "delta",
            tuned=lora / MERGED,
            data=data,
            public=public,
            options=settings,
            **common,
        ).curve

    def residual() -> Curve:
        out = folder / "residual"
        return split(lora / MERGED, out, method="residual", options=plan.residual, **common).curve

    needed = {"tune": (tuned,), "delta": (merged, delta), "residual": (merged, residual)}
    stages = dict.fromkeys(stage for name in wanted for stage in needed[name])
    done = {stage.__name__: _finished(folder, stage) for stage in stages}
    public_path = Checkpoint(public).path
    both = ("repair", "private")
    plain: dict[str, Setting] = {"alpha0": 0.0, "alpha1": {"private": 1.0}}
    ways = [
        Way("tune", folder / "tune", both, STATES, "exact", public_path),
        Way("delta", folder / "delta", both, STATES, "exact", lora / MERGED),
        Way("residual", folder / "residual", ("private",), plain, "measured", lora / MERGED),
    ]
    trained = {
        "tune": {"tune": "tuned"},
        "delta": {"LoRA": "merged", "delta": "delta"},
        "residual": {"LoRA": "merged"},
    }
    curves = {
        name: {run: done[stage].curve for run, stage in trained[name].items()} for name in wanted
    }
    seconds = {name: sum(done[stage.__name__].seconds for stage in needed[name]) for name in wanted}
    chosen = [way for way in ways if way.name in wanted]
    return Made(base, canaries, members, controls, lora / MERGED, chosen, curves, seconds)


def _asked(public: str | Path, text: Text | None) -> dict[str, JsonValue]:
    return {
        "public_sha256": Checkpoint(public).sha256(),
        "text_sha256": text.sha256 if text else "shipped",
        "replay_sha256": (text or shipped_replay()).sha256,
    }


def _json(options: BaseModel) -> JsonValue:
    found: JsonValue = options.model_dump(mode="json")
    return found


def _keep(canaries: CanarySet, members: Path, controls: Path) -> None:
    """Write the canaries, unless they are there; others there are what a stream was trained on."""
    there = [file for file in (members, controls) if file.is_file()]
    for file, half in ((members, canaries.members), (controls, canaries.controls)):
        if file in there and file.read_bytes() != encode_jsonl(map(asdict, half)):
            count = len(file.read_bytes().splitlines())
            raise ConfigError(
                f"{file} holds {count} other canaries than the {len(half)} of this run: "
                f"ask for --members {count} and the seed they were drawn by, or choose another -o"
            )
    if len(there) < 2:
        canaries.write(members, controls)


@dataclass(frozen=True)
class _Stage:
    curve: Curve
    seconds: float


def _finished(folder: Path, stage: Callable[[], Curve]) -> _Stage:
    """Run a stage, or read what it left when it was run before."""
    file = folder / f"{stage.__name__}{_STAGE}"
    if file.is_file():
        return _Stage(**json.loads(file.read_text("utf-8")))
    for leftover in _OUTPUTS[stage.__name__]:
        shutil.rmtree(folder / leftover, ignore_errors=True)
    begin = time.monotonic()
    curve = stage()
    result = _Stage(curve, time.monotonic() - begin)
    write_atomic(file, json.dumps(asdict(result)))
    return result
