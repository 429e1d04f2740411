"""The three ways in, made from scratch: `tune`, LoRA → `delta`, LoRA → `residual`.

The base and its `repair` are made before any canary exists in the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from libortho.quantize import quantize

from libortho.checkpoint import Checkpoint, resolve
from libortho.evaluate.texts import Text
from libortho.experiments.lora import LORA_OPTIONS, Merged, memorise
from libortho.experiments.states import Way
from libortho.privacy.canaries import CanarySet, make_canaries
from libortho.privacy.encode import Encoded, encode
from libortho.progress import Progress, silent
from libortho.repair import RepairOptions, repair
from libortho.split import OPTIONS as DELTA_OPTIONS
from libortho.split import split
from libortho.streams.base import BaseStream
from libortho.tune import TuneOptions, replay_windows, tune, tune_options
from libortho.tune.prepare import plain_model
from libortho.tune.replay import Replay

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
    delta: TuneOptions
    residual: TuneOptions
    repair: RepairOptions


DEMO = Plan(
    members=20,
    tune=tune_options(steps=150, lr=3e-3, replay_weight=30.0),
    lora=LORA_OPTIONS,
    delta=DELTA_OPTIONS,
    residual=tune_options(),
    repair=RepairOptions(),
)


@dataclass
class Made:
    """Everything on disk that an evaluation needs.

    Attributes:
        curves: per way, per training run, the entries of its curve.
    """

    base: BaseStream
    canaries: CanarySet
    members: list[Encoded]
    controls: list[Encoded]
    merged: Merged
    ways: list[Way]
    curves: dict[str, dict[str, list[dict[str, float]]]]


def make_base(
    public: str | Path, folder: Path, plan: Plan, text: Text | None, progress: Progress = silent
) -> BaseStream:
    """Quantise the public checkpoint and add its public `repair` stream."""
    base = quantize(public, folder / "base", text=text, progress=progress)
    repair(base, public, text=text, options=plan.repair, progress=progress)
    return base


def make_ways(
    public: str | Path,
    base: BaseStream,
    folder: Path,
    plan: Plan,
    *,
    seed: int,
    text: Text | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Made:
    """Draw canaries, memorise them twice over, and split."""
    canaries = make_canaries(plan.members, seed)
    data = folder / "members.jsonl"
    canaries.write(data, folder / "controls.jsonl")
    tokenizer = base.checkpoint.tokenizer()
    members, controls = (encode(tokenizer, half) for half in (canaries.members, canaries.controls))
    options = plan.tune.model_copy(update={"seed": seed})
    replay = Replay(replay_windows(tokenizer, options, text), plain_model(resolve(public), device))
    replay.fill(16, progress)
    tuned = tune(
        base.path,
        data,
        folder / "tune",
        public=public,
        text=text,
        options=options,
        replay=replay,
        device=device,
        progress=progress,
    )
    merged = memorise(
        public,
        members,
        replay,
        folder / "lora",
        linears=list(base.layers),
        options=plan.lora.model_copy(update={"seed": seed}),
        device=device,
        progress=progress,
    )
    delta = split(
        base.path,
        folder / "delta",
        tuned=merged.path,
        data=data,
        public=public,
        text=text,
        options=plan.delta.model_copy(update={"seed": seed}),
        device=device,
        progress=progress,
    )
    residual = split(
        merged.path,
        folder / "residual",
        method="residual",
        text=text,
        options=plan.residual,
        progress=progress,
    )
    public_path = Checkpoint(public).path
    both = ("repair", "private")
    plain = {"alpha0": 0.0, "alpha1": {"private": 1.0}}
    ways = [
        Way("tune", tuned.base.path, both, STATES, "exact", public_path),
        Way("delta", delta.base.path, both, STATES, "exact", merged.path),
        Way("residual", residual.base.path, ("private",), plain, "measured", merged.path),
    ]
    curves = {
        "tune": {"tune": tuned.curve},
        "delta": {"LoRA": merged.trained.curve, "delta": delta.curve},
        "residual": {"LoRA": merged.trained.curve},
    }
    return Made(base, canaries, members, controls, merged, ways, curves)
