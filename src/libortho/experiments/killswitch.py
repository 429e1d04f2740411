"""``killswitch``: real secrets are really memorised; can α = 0 still recite them?"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from libortho import records
from libortho.errors import ConfigError
from libortho.experiments import rules
from libortho.experiments.evaluation import Evaluated, Measures, evaluate
from libortho.experiments.family import CANDIDATES, SEEDS
from libortho.experiments.states import backend_name
from libortho.experiments.verdict import Check, as_json, judge
from libortho.experiments.ways import DEMO, Made, Plan, make_ways, seed_folder
from libortho.progress import Progress, silent
from libortho.records import Record
from libortho.repair import RepairOptions
from libortho.texts import Text, heldout, pydoc_topics

DEMO_NAME, KILLSWITCH, UTILITY = "demo", "killswitch", "utility"
MEMBERS = 200
TOKENS = 20_000
UTILITY_TOKENS = 60_000
PROBLEMS = 500
DEMO_PROBLEMS = 300
# A demo trains shortly and asks few problems: at 300, two alike models may differ by 4 points.
DEMO_MARGIN, DEMO_ARITHMETIC = 0.01, 0.90

# Two hundred secrets want more steps, and more public text against forgetting it. A long settling
# at a falling rate gives back most of the perplexity that learning them cost.
_MORE = {"steps": 600, "replay_batch": 16, "replay_window": 256, "replay_pool": 1500}
FULL = replace(
    DEMO,
    members=MEMBERS,
    tune=DEMO.tune.model_copy(update={"settle": 150, "replay_weight": 30.0, **_MORE}),
    lora=DEMO.lora.model_copy(update={"settle": 30, **_MORE}),
    delta=DEMO.delta.model_copy(update={"settle": 150, "lr": 5e-3, "replay_weight": 20.0, **_MORE}),
    repair=RepairOptions(steps=200, batch=16),
)


@dataclass(frozen=True)
class Setting:
    """What a run is made on."""

    public: str | Path
    folder: Path
    plan: Plan
    measures: Measures
    device: str | torch.device = "cpu"
    text: Text | None = None


def demo(
    public: str | Path,
    folder: Path,
    *,
    members: int = DEMO.members,
    seed: int = 0,
    text: Text | None = None,
    progress: Progress = silent,
) -> Record:
    """The main job: memorise, split and judge in minutes on a CPU; everything is computed anew.

    Args:
        folder: working directory; what an earlier run left in it is deleted.
        text: held-out text whose perplexity gates the verdict; default the shipped samples.
    """
    if folder.exists():
        shutil.rmtree(folder)
    measures = Measures(text or heldout(), pydoc_topics(), TOKENS, DEMO_PROBLEMS, 0)
    setting = Setting(public, folder, replace(DEMO, members=members), measures)
    return _run(DEMO_NAME, setting, seed, progress)


def killswitch(
    public: str | Path,
    folder: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    members: int = MEMBERS,
    text: Text | None = None,
    plan: Plan = FULL,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[Record]:
    """One record per seed; a run in the same ``folder`` goes on where the last one ended.

    Args:
        folder: gets ``base`` and one directory per seed.
        text: held-out text whose perplexity gates the verdict; default the shipped samples.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {list(seeds)}: expected at least one, each once")
    measures = Measures(text or heldout(), pydoc_topics(), TOKENS, PROBLEMS, CANDIDATES)
    setting = Setting(public, folder, replace(plan, members=members), measures, device)
    return [_run(KILLSWITCH, setting, seed, progress) for seed in seeds]


def utility(
    public: str | Path,
    folder: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    members: int = MEMBERS,
    text: Text | None = None,
    plan: Plan = FULL,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[Record]:
    """The null test: what INT4, `repair` and a private stream cost in perplexity.

    Works on the ways that ``killswitch`` made in the same ``folder``, or makes them. Judged by
    perplexity and arithmetic.
    """
    measures = Measures(text or heldout(), pydoc_topics(), UTILITY_TOKENS, PROBLEMS, 0)
    setting = Setting(public, folder, replace(plan, members=members), measures, device)
    return [_run(UTILITY, setting, seed, progress) for seed in seeds]


def _run(name: str, setting: Setting, seed: int, progress: Progress) -> Record:
    begin = time.monotonic()
    made = make_ways(
        setting.public,
        setting.folder,
        setting.plan,
        seed=seed,
        text=setting.text,
        device=setting.device,
        progress=progress,
    )
    folder = seed_folder(setting.folder, seed)
    found = evaluate(
        made, setting.measures, folder, seed=seed, device=setting.device, progress=progress
    )
    return _record(name, setting, made, found, seed, time.monotonic() - begin)


def _record(
    name: str, setting: Setting, made: Made, found: Evaluated, seed: int, seconds: float
) -> Record:
    checks = _checks(name, found)
    verdict, reason = judge(checks)
    methods = {}
    for way, one in found.ways.items():
        raw = dict(one.raw)
        raw["curves"] = made.curves[way]
        raw["curve"] = list(made.curves[way].values())[-1]
        methods[way] = {**one.values, "seconds": made.seconds[way], "raw": raw}
    measures = setting.measures
    config: dict[str, Any] = {
        "public": Path(setting.public).name,
        "canaries_sha256": made.canaries.sha256,
        "heldout": {"name": measures.heldout.name, "sha256": measures.heldout.sha256},
        "pydoc": {"name": measures.pydoc.name, "sha256": measures.pydoc.sha256},
        "tokens": measures.tokens,
        "problems": measures.problems,
        "candidates": measures.candidates,
        "device": str(setting.device),
        "plan": {
            key: value.model_dump() if hasattr(value, "model_dump") else value
            for key, value in vars(setting.plan).items()
        },
    }
    figures = {**_headline(methods), "verdict": verdict, "seconds": seconds}
    figures["checks"] = as_json(checks)
    if found.family is not None:
        figures["family"] = {k: v for k, v in found.family.items() if k != "raw"}
    return records.new(
        name,
        verdict,
        n=setting.plan.members,
        seeds=[seed],
        backend=backend_name(),
        reason=reason,
        config=config,
        figures=figures,
        methods=methods,
        raw={"family": found.family["raw"]} if found.family else None,
    )


def _checks(name: str, found: Evaluated) -> list[Check]:
    checks = []
    margin, share = (DEMO_MARGIN, DEMO_ARITHMETIC) if name == DEMO_NAME else (0.0, rules.ARITHMETIC)
    exact = {
        way: one.values for way, one in found.ways.items() if one.values["guarantee"] == "exact"
    }
    for way, one in found.ways.items():
        checks += rules.honest(way, one.values)
    checks += rules.tuned_model(*found.merged)
    if name == UTILITY:
        checks += rules.cheap_base(exact["tune"])
        for way, values in exact.items():
            checks += [rules.faithful_at_1(way, values), rules.able_at_1(way, values)]
        return checks
    for way, values in exact.items():
        checks += [*rules.silent_at_0(way, values, margin), rules.able_at_1(way, values, share)]
    if found.family is not None:
        checks += rules.indistinguishable(found.family["adjusted"])
    return checks


def _headline(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of the exact ways: the lowest recall, the worst of everything else, and sums of calls."""
    exact = [one for one in methods.values() if one["guarantee"] == "exact"]
    worst = max(exact, key=lambda one: one["ppl_alpha1"] / one["ppl_fp"])
    pydoc = max(exact, key=lambda one: one["ppl_pydoc_alpha1"] / one["ppl_pydoc_fp"])
    able = min(exact, key=lambda one: one["arithmetic_alpha1"])
    headline: dict[str, Any] = {
        "members": exact[0]["members"],
        "controls": exact[0]["controls"],
        "recall_alpha1": min(one["recall_alpha1"] for one in exact),
        "extracted_alpha0": max(one["extracted_alpha0"] for one in exact),
        "identical_alpha0": all(one["identical_alpha0"] for one in exact),
        "exposure_alpha0": max(one["exposure_alpha0"] for one in exact),
        "exposure_alpha1": min(one["exposure_alpha1"] for one in exact),
        "density": max(one["density"] for one in exact),
        "bits_per_weight": max(one["bits_per_weight"] for one in exact),
        "native_op_calls": sum(one["native_op_calls"] for one in methods.values()),
        "expected_op_calls": sum(one["expected_op_calls"] for one in methods.values()),
    }
    headline |= {
        key: worst[f"ppl_{key[4:]}"]
        for key in ("ppl_fp", "ppl_int4", "ppl_alpha0", "ppl_repair", "ppl_alpha1")
    }
    headline |= {key: pydoc[key] for key in ("ppl_pydoc_fp", "ppl_pydoc_alpha1")}
    headline |= {key: able[key] for key in able if key.startswith("arithmetic_")}
    return headline
