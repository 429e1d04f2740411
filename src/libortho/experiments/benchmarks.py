"""``benchmarks``: tasks of lm-evaluation-harness on FP, α = 0, `repair` and α = 1.

Two tasks are made from what is shipped, in the form of ``arithmetic_*`` and ``wikitext`` and under
names of their own. Those that want data sets from the hub run where these can be had.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from pydantic import JsonValue

from libortho import records
from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError
from libortho.evaluate.arithmetic import make_problems
from libortho.evaluate.processes import run_child
from libortho.experiments import ways
from libortho.experiments.killswitch import FULL as FULL_WAYS
from libortho.experiments.states import backend_name
from libortho.experiments.verdict import Check, as_json, judge
from libortho.experiments.ways import DEMO, STATES, make_ways, seed_folder
from libortho.progress import Progress, silent
from libortho.records import Record, write_atomic
from libortho.texts import Text, heldout

NAME = "benchmarks"
INSTALL = "pip install 'libortho[lm-eval]'"
ARITHMETIC, HELDOUT = "libortho_arithmetic", "libortho_heldout"
HUB_TASKS = (
    "arithmetic_1dc",
    "arithmetic_2dm",
    *(f"arithmetic_{digits}d{sign}" for digits in (2, 3, 4, 5) for sign in "as"),
    "wikitext",
    "mmlu",
    "gsm8k",
)
_WAY = "tune"
_HUB_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        problems: of the shipped arithmetic.
        documents: of the shipped held-out text.
        ways: how base and stream are made where the folder has none.
    """

    problems: int = 1000
    documents: int = 100
    ways: ways.Plan = FULL_WAYS


FULL = Plan()
SMALL = Plan(problems=100, documents=20, ways=DEMO)


def hub_answers() -> bool:
    """Whether the hub can be reached by the client that fetches from it."""
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    # Of whatever kind: the client's transport is its own affair, and no answer is no answer.
    except Exception as error:
        logger.warning("the hub cannot be reached (%s): what is cached is used", error)
        return False
    return True


def require_lm_eval() -> None:
    """Raise ConfigError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(f"lm-eval is not installed: {INSTALL}")


def benchmarks(
    public: str | Path,
    folder: Path,
    *,
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    plan: Plan = FULL,
    text: Text | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[Record]:
    """One record per seed, over the stream that ``tune`` made in ``folder``, or makes there.

    Args:
        tasks: of lm-eval, by name; the two shipped ones and the usual ones from the hub for none.
        text: public text for the base and the replay, where they are made.

    Raises:
        ConfigError: lm-eval is absent, before any work.
        LibOrthoError: a task that lm-eval does not know, or that failed otherwise than by its data
            being out of reach.
    """
    require_lm_eval()
    made = []
    for seed in seeds:
        begin = time.monotonic()
        common: dict[str, Any] = {"text": text, "device": device, "progress": progress}
        (way,) = make_ways(public, folder, plan.ways, seed=seed, wanted=(_WAY,), **common).ways
        asked = list(tasks) or [ARITHMETIC, HELDOUT, *HUB_TASKS]
        states = _states(Checkpoint(public).path, way.path, device)
        found = _asked(seed_folder(folder, seed), asked, states, plan, seed, progress)
        made.append(_record(public, way.path, asked, found, plan, seed, time.monotonic() - begin))
    return made


def write_tasks(folder: Path, plan: Plan, seed: int) -> str:
    """Write the shipped tasks for lm-eval's ``include_path``; return the sha256 of their data."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = [
        {"context": one.prompt, "completion": f" {one.answer}"}
        for one in make_problems(plan.problems, seed)
    ]
    pages = [{"page": one} for one in heldout().documents[: plan.documents]]
    perplexities = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    digest = hashlib.sha256()
    for name, rows, how in (
        (
            ARITHMETIC,
            problems,
            {
                "output_type": "loglikelihood",
                "doc_to_text": "{{context}}",
                "doc_to_target": "{{completion}}",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc"}],
            },
        ),
        (
            HELDOUT,
            pages,
            {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{page}}",
                "metric_list": [{"metric": one} for one in perplexities],
            },
        ),
    ):
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        digest.update(data.encode())
        file = folder / f"{name}.jsonl"
        write_atomic(file, data)
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
            "test_split": "test",
            **how,
        }
        # JSON is YAML.
        write_atomic(folder / f"{name}.yaml", json.dumps(task, indent=1) + "\n")
    return digest.hexdigest()


def _states(public: Path, base: Path, device: str | torch.device) -> list[dict[str, Any]]:
    """Every state, as arguments of ``simple_evaluate``; each text begins as the tokenizer asks."""
    shared = {"device": str(device), "batch_size": 8, "add_bos_token": True, "dtype": "float32"}
    fp = {"pretrained": str(public), **shared}
    ours = [
        {
            "name": name,
            "model": "libortho",
            "model_args": {"path": str(base), "ortho_alpha": alpha, **shared},
        }
        for name, alpha in STATES.items()
    ]
    return [{"name": "fp", "model": "hf", "model_args": fp}, *ours]


def _asked(
    folder: Path,
    tasks: Sequence[str],
    states: Sequence[Mapping[str, Any]],
    plan: Plan,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    own = folder / "tasks"
    data = write_tasks(own, plan, seed)
    output, job = folder / "lm-eval.json", folder / "lm-eval.job.json"
    told = {
        "states": states,
        "tasks": list(tasks),
        "include": str(own.resolve()),
        "limit": None,
        "seed": seed,
        "output": str(output.resolve()),
    }
    output.unlink(missing_ok=True)
    write_atomic(job, json.dumps(told))
    command = [sys.executable, "-m", "libortho.integrations.benchmarks", str(job.resolve())]
    # Offline nothing is asked for again and again; what is cached still counts.
    run_child(command, "lm-eval", progress, offline=not hub_answers())
    found: dict[str, Any] = json.loads(output.read_text("utf-8"))
    return {**found, "data_sha256": data}


def _record(
    public: str | Path,
    path: Path,
    tasks: Sequence[str],
    found: Mapping[str, Any],
    plan: Plan,
    seed: int,
    seconds: float,
) -> Record:
    states, absent = found["states"], found["absent"]
    run = [task for task in tasks if task not in absent]
    checks = [Check("tasks that could be run here", bool(run), "VOID", len(run), "≥ 1")]
    verdict, reason = judge(checks)
    if absent:
        reason += f" {len(absent)} of {len(tasks)} tasks were not run here."
    model = "" if str(public) == "reference" else " --model CHECKPOINT"
    first: Mapping[str, Any] = next(iter(states.values()), {})
    methods: dict[str, Any] = {}
    for state, results in states.items():
        figures: dict[str, JsonValue] = {
            "tasks": {task: {**one["metrics"], "n": one["n"]} for task, one in results.items()}
        }
        raw = {task: one["samples"] for task, one in results.items() if one["samples"]}
        methods[state] = {**figures, "raw": raw}
    return records.new(
        NAME,
        verdict,
        n=sum(one["n"] for one in first.values()),
        seeds=[seed],
        backend=backend_name(),
        reason=reason,
        config={
            "public": Checkpoint(public).path.name,
            "base": path.name,
            "tasks": list(tasks),
            "problems": plan.problems,
            "documents": plan.documents,
            "data_sha256": found["data_sha256"],
            "lm_eval": importlib.metadata.version("lm_eval"),
            "absent": dict(absent),
        },
        figures={"checks": as_json(checks), "seconds": seconds},
        methods=methods,
        not_run={
            task: f"libortho experiment {NAME}{model} --task {task} --seed {seed}"
            for task in absent
        },
    )
