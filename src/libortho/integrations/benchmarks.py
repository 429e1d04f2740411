"""Tasks of lm-eval over several states of a model, in a process of their own.

    python -m libortho.integrations.benchmarks JOB.json

The job names ``states`` (each ``name``, ``model`` and ``model_args`` of ``simple_evaluate``),
``tasks``, ``include`` (a folder of tasks), ``limit`` and ``output``. The output holds per state and
task the metrics, their standard errors and the metrics of every sample, and under ``absent`` the
tasks whose data could not be had, each with the reason.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from libortho.evaluate.stock import report_progress
from libortho.integrations import lm_eval as _registers  # noqa: F401


def main(job_path: str) -> None:
    """Run the job of that file."""
    job: dict[str, Any] = json.loads(Path(job_path).read_text("utf-8"))
    manager = TaskManager(include_path=job["include"])
    unknown = [name for name in job["tasks"] if name not in manager.all_tasks]
    if unknown:
        sys.exit(f"lm-eval knows no task {', '.join(unknown)}")
    absent: dict[str, str] = {}
    for name in job["tasks"]:
        try:
            manager.load([name])
        # Out of reach, not found, or offline: the hub's and datasets' errors are all OSErrors.
        except OSError as error:
            absent[name] = str(error).strip().split("\n")[0]
    tasks = [name for name in job["tasks"] if name not in absent]
    found: dict[str, Any] = {}
    for done, state in enumerate(job["states"] if tasks else []):
        report_progress(f"lm-eval: {state['name']}", done, len(job["states"]))
        results = simple_evaluate(
            model=state["model"],
            model_args=state["model_args"],
            tasks=tasks,
            task_manager=manager,
            limit=job["limit"],
            log_samples=True,
            random_seed=job["seed"],
            numpy_random_seed=job["seed"],
            torch_random_seed=job["seed"],
            fewshot_random_seed=job["seed"],
        )
        found[state["name"]] = _told(results)
    Path(job["output"]).write_text(json.dumps({"states": found, "absent": absent}), "utf-8")


def _told(results: dict[str, Any]) -> dict[str, Any]:
    """Per task: its metrics, and what each sample adds to them."""
    told: dict[str, Any] = {}
    for task, values in results["results"].items():
        metrics = {
            # "acc,none" is a metric and the filter before it.
            key.removesuffix(",none"): value
            for key, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        rows = results["samples"].get(task, [])
        told[task] = {
            "metrics": metrics,
            "n": len(rows),
            "samples": {
                name: [row[name] for row in rows] for name in (rows[0]["metrics"] if rows else ())
            },
        }
    return told


if __name__ == "__main__":
    main(sys.argv[1])
