"""``alpha-sweep``: how recall, exposure and ability change while α goes from 0 to 1."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from libortho import gate, records
from libortho.evaluate.arithmetic import accuracy, make_problems
from libortho.evaluate.perplexity import token_nll
from libortho.experiments import rules, ways
from libortho.experiments.family import SEEDS
from libortho.experiments.killswitch import FULL as FULL_WAYS
from libortho.experiments.states import backend_name
from libortho.experiments.verdict import Check, as_json, at_least, exactly, judge
from libortho.experiments.ways import DEMO, Made, make_ways, seed_folder
from libortho.gate import REPAIR
from libortho.model import call_region, load
from libortho.privacy.exposure import exposure_against
from libortho.privacy.score import score
from libortho.privacy.statistics import auc, clopper_pearson
from libortho.progress import Progress, silent
from libortho.records import Record, write_atomic
from libortho.texts import Text, heldout, windows

NAME = "alpha-sweep"
WAY = "tune"
STREAM = "private"
ALPHAS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class Plan:
    """How much is measured at each α.

    Attributes:
        problems: arithmetic problems.
        tokens: of held-out text.
        alphas: of the private stream; `repair` stays open at 1.
        ways: how the stream is made where the folder has none.
    """

    problems: int = 500
    tokens: int = 20_000
    alphas: tuple[float, ...] = ALPHAS
    ways: ways.Plan = FULL_WAYS


FULL = Plan()
SMALL = Plan(problems=200, tokens=10_000, ways=DEMO)


def alpha_sweep(
    public: str | Path,
    folder: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    plan: Plan = FULL,
    text: Text | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[Record]:
    """One record per seed, over the stream that `tune` made.

    Args:
        folder: works on what ``killswitch`` left there by the same plan of ways, or makes it; a
            run in the same folder goes on after the last α.
        text: public text for the base and the replay, where they are made.
        device: of training; the sweep itself runs on the CPU.

    The largest α comes first: without recall there the run is VOID, and ends.
    """
    made = []
    for seed in seeds:
        begin = time.monotonic()
        common: dict[str, Any] = {"text": text, "device": device, "progress": progress}
        ready = make_ways(public, folder, plan.ways, seed=seed, wanted=(WAY,), **common)
        points = _sweep(ready, plan, seed_folder(folder, seed), seed, progress)
        made.append(_record(public, ready, plan, points, seed, time.monotonic() - begin))
    return made


def _sweep(
    made: Made, plan: Plan, folder: Path, seed: int, progress: Progress
) -> list[dict[str, Any]]:
    """What was found at each α, read from the folder where it was found before."""
    (way,) = made.ways
    tokenizer = made.base.checkpoint.tokenizer()
    context = made.base.config.get_text_config().max_position_embeddings
    text = windows(heldout(), tokenizer, context, plan.tokens)
    problems = make_problems(plan.problems, seed)
    stream = json.loads((way.path / "ortho" / STREAM / "stream.json").read_text("utf-8"))["id"]
    told = f"{made.base.id} {stream} {plan.problems} {plan.tokens}"
    key = hashlib.sha256(told.encode()).hexdigest()[:12]
    model = None
    points: list[dict[str, Any]] = []
    for alpha in sorted(plan.alphas, reverse=True):
        file = folder / f"alpha-{alpha:g}-{key}.json"
        if not file.is_file():
            model = model or load(way.path, way.streams)
            stage = f"α = {alpha:g}"
            with call_region(model, stage) as calls, gate.alpha({REPAIR: 1.0, STREAM: alpha}):
                members = score(model, made.members, stage=stage, progress=progress)
                controls = score(model, made.controls, stage=stage, progress=progress)
                nll = token_nll(model, text, stage=f"{stage}: text", progress=progress)
                solved = accuracy(
                    model, tokenizer, problems, stage=f"{stage}: arithmetic", progress=progress
                )
            found = {
                "alpha": alpha,
                "nll": [[one.nll for one in half] for half in (members, controls)],
                "exact": [[int(one.exact) for one in half] for half in (members, controls)],
                "text": nll.double().mean(1).tolist(),
                "correct": [int(flag) for flag in solved.correct],
                "native_op_calls": calls.native_op_calls,
                "expected_op_calls": calls.expected_op_calls,
            }
            write_atomic(file, json.dumps(found))
        points.insert(0, json.loads(file.read_text("utf-8")))
        if alpha == max(plan.alphas) and not _power(points).held:
            break
    return points


def _power(points: Sequence[dict[str, Any]]) -> Check:
    opened = max(points, key=lambda point: float(point["alpha"]))
    recall = fmean(opened["exact"][0])
    return at_least("recall at α=1", recall, rules.RECALL, "VOID")


def _record(
    public: str | Path,
    made: Made,
    plan: Plan,
    points: Sequence[dict[str, Any]],
    seed: int,
    seconds: float,
) -> Record:
    swept = [_figures(point) for point in points]
    backend = backend_name()
    checks = [_power(points)]
    if backend.startswith("native"):
        calls, expected = (
            sum(point[key] for point in points) for key in ("native_op_calls", "expected_op_calls")
        )
        checks.append(exactly("native calls", calls, expected, "VOID"))
    verdict, reason = judge(checks)
    raw = [
        {key: value for key, value in point.items() if not key.endswith("op_calls")}
        for point in points
    ]
    curves: dict[str, Any] = dict(made.curves[WAY])
    method: dict[str, Any] = {
        "guarantee": "exact",
        "exposure_kind": "controls",
        "sweep": swept,
        "seconds": made.seconds[WAY],
        "raw": {"sweep": raw, "curves": curves},
    }
    return records.new(
        NAME,
        verdict,
        n=len(made.members),
        seeds=[seed],
        backend=backend,
        reason=reason,
        config={
            "public": Path(public).name,
            "canaries_sha256": made.canaries.sha256,
            "problems": plan.problems,
            "tokens": plan.tokens,
            "alphas": list(plan.alphas),
            "repair": 1.0,
        },
        figures={
            "members": len(made.members),
            "controls": len(made.controls),
            "recall_alpha1": checks[0].found,
            "checks": as_json(checks),
            "seconds": seconds,
        },
        methods={WAY: method},
    )


def _figures(point: dict[str, Any]) -> dict[str, Any]:
    members, controls = point["nll"]
    recited, solved = sum(point["exact"][0]), sum(point["correct"])
    return {
        "alpha": point["alpha"],
        "acts": round(point["alpha"] * gate.STEPS) / gate.STEPS,
        "recall": recited / len(members),
        "recall_interval": _interval(recited, len(members)),
        "nll": fmean(members),
        "nll_controls": fmean(controls),
        "auc": auc(members, controls),
        "exposure": fmean(exposure_against(members, controls)),
        "ppl": math.exp(fmean(point["text"])),
        "arithmetic": solved / len(point["correct"]),
        "arithmetic_interval": _interval(solved, len(point["correct"])),
    }


def _interval(count: int, n: int) -> list[float]:
    found = clopper_pearson(count, n)
    return [found.low, found.high]
