"""Tasks of lm-eval over the states of a gate: what is asked, told, and not run here."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from libortho import gate, records, report
from libortho.errors import ConfigError, LibOrthoError
from libortho.evaluate.arithmetic import make_problems
from libortho.experiments import benchmarks as module
from libortho.experiments.benchmarks import (
    ARITHMETIC,
    HELDOUT,
    HUB_TASKS,
    SMALL,
    benchmarks,
    require_lm_eval,
    write_tasks,
)
from libortho.model import load
from libortho.records import Record
from libortho.repair import RepairOptions
from libortho.tune import tune_options

PLAN = replace(
    SMALL,
    problems=4,
    documents=2,
    ways=replace(
        SMALL.ways,
        members=2,
        repair=RepairOptions(steps=1, windows=2, batch=2),
        tune=tune_options(steps=2, settle=0, replay_pool=2, replay_window=16),
    ),
)
REAL = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed: pip install 'libortho[lm-eval]'",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """lm-eval as if the hub were out of reach; the jobs that it is given."""
    jobs: list[dict[str, Any]] = []

    def child(command: Sequence[str], *_: object, offline: bool) -> None:
        assert offline
        job = json.loads(Path(command[-1]).read_text())
        jobs.append(job)
        own = [name for name in job["tasks"] if name not in HUB_TASKS]
        told = {"metrics": {"acc": 0.5, "acc_stderr": 0.25}, "n": 4, "samples": {"acc": [1, 0]}}
        Path(job["output"]).write_text(
            json.dumps(
                {
                    "states": {s["name"]: dict.fromkeys(own, told) for s in job["states"] if own},
                    "absent": {n: "out of reach" for n in job["tasks"] if n in HUB_TASKS},
                }
            )
        )

    monkeypatch.setattr(module, "run_child", child)
    monkeypatch.setattr(module, "require_lm_eval", lambda: None)
    monkeypatch.setattr(module, "hub_answers", lambda: False)
    monkeypatch.setattr(module.importlib.metadata, "version", lambda _: "0.4")
    return jobs


def test_what_cannot_be_had_is_not_run_here_and_has_its_command(
    answered: list[dict[str, Any]], folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (record,) = benchmarks(tiny_checkpoint, folder, plan=PLAN)
    assert record.verdict == "PASS"
    assert set(record.not_run) == set(HUB_TASKS)
    assert record.not_run["gsm8k"].endswith("--model CHECKPOINT --task gsm8k --seed 0")
    assert list(record.methods) == ["fp", "alpha0", "repair", "alpha1"]
    (job,) = answered
    assert [state["model"] for state in job["states"]] == ["hf", *["libortho"] * 3]
    assert [state["model_args"].get("ortho_alpha") for state in job["states"]] == [
        None,
        0.0,
        {"repair": 1.0},
        {"repair": 1.0, "private": 1.0},
    ]
    records.write(record, tmp_path / "record.json")
    page = report.render([records.read(tmp_path / "record.json")], tmp_path / "r.html").read_text()
    assert "not run here" in page
    assert "--task gsm8k" in page
    assert f"{ARITHMETIC}: acc" in page


def test_a_run_of_which_nothing_could_be_run_is_void(
    answered: list[dict[str, Any]], folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (record,) = benchmarks(tiny_checkpoint, folder, tasks=["wikitext"], plan=PLAN)
    assert record.verdict == "VOID"
    assert not record.methods
    assert "shows nothing" in report.render([record], tmp_path / "r.html").read_text()


def test_shipped_tasks_are_named_as_what_they_are(tmp_path: Path) -> None:
    sha256 = write_tasks(tmp_path, PLAN, seed=1)
    assert sha256 == write_tasks(tmp_path, PLAN, seed=1) != write_tasks(tmp_path, PLAN, seed=2)
    assert not {ARITHMETIC, HELDOUT} & set(HUB_TASKS)
    write_tasks(tmp_path, PLAN, seed=1)
    rows = [json.loads(line) for line in (tmp_path / f"{ARITHMETIC}.jsonl").open()]
    assert [(row["context"], row["completion"]) for row in rows] == [
        (one.prompt, f" {one.answer}") for one in make_problems(4, 1)
    ]


def test_without_lm_eval_the_command_that_brings_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'libortho\[lm-eval\]'"):
        require_lm_eval()


@pytest.fixture(scope="module")
def real(folder: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The real lm-eval, with neither hub nor cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "hub_answers", lambda: False)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        (record,) = benchmarks(
            tiny_checkpoint, folder, tasks=[ARITHMETIC, HELDOUT, "wikitext"], plan=PLAN
        )
    return record


@REAL
def test_lm_eval_finds_what_the_model_says_at_that_alpha(real: Record, folder: Path) -> None:
    assert real.verdict == "PASS"
    assert list(real.not_run) == ["wikitext"]
    path = folder / "seed-0" / "tune"
    rows = [json.loads(line) for line in (folder / f"seed-0/tasks/{HELDOUT}.jsonl").open()]
    for state, alpha in (("alpha0", 0.0), ("alpha1", {"repair": 1.0, "private": 1.0})):
        model = load(path, ["repair", "private"])
        tokenizer = model.ortho.base.checkpoint.tokenizer()
        ids = tokenizer(rows[0]["page"])["input_ids"]
        context = model.config.max_position_embeddings
        with torch.no_grad(), gate.alpha(alpha):
            first = torch.tensor([ids[:context]])
            logits = model(first).logits[0, :-1].double().log_softmax(-1)
        told = real.methods[state].raw[HELDOUT]["word_perplexity"][0]
        if len(ids) <= context:
            found = logits.gather(1, first[0, 1:, None]).sum().item()
            assert told[0] == pytest.approx(found, rel=1e-4)
        assert math.isfinite(told[0])
    metrics = [real.methods[state].figures["tasks"][HELDOUT] for state in ("fp", "alpha0")]
    assert metrics[0]["word_perplexity"] != metrics[1]["word_perplexity"]
    assert metrics[0]["n"] == 2


@REAL
def test_a_task_nobody_knows_is_an_error(
    folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "hub_answers", lambda: False)
    with pytest.raises(LibOrthoError, match="knows no task no_such_task"):
        benchmarks(tiny_checkpoint, folder, tasks=["no_such_task"], plan=PLAN)
