"""The real lm-eval drives a converted model, and keeps the answers of each alpha apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from libortho import gate
from libortho.errors import AlphaError, ConfigError
from libortho.integrations import lm_eval
from libortho.integrations.lm_eval import OrthoLM
from libortho.model import load
from libortho.streams.base import BaseStream
from libortho.streams.ortho import STREAM_FOLDER
from libortho.streams.ortho_writer import write_stream

QUESTIONS = [
    {"question": "The colour of the sky is", "choices": ["blue", "seven", "above"], "answer": 0},
    {"question": "Two and two make", "choices": ["four", "a pair", "shoes"], "answer": 0},
    {"question": "Water is", "choices": ["dry", "wet", "on fire"], "answer": 1},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_base: Path, make_layers) -> Path:
    """A base with a repair and two tenants."""
    out = Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("lm") / "base"))
    for seed, name in enumerate(("repair", "tenant-1", "tenant-2")):
        write_stream(
            out / STREAM_FOLDER / name,
            name=name,
            base_id=BaseStream.open(out).id,
            public=name == "repair",
            method="tune",
            guarantee="exact",
            layers=make_layers(seed=seed).items(),
        )
    return out


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Two tasks on a local file: multiple choice, and generation."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\ndoc_to_text: question\n"
    )
    (folder / "choice.yaml").write_text(
        f"task: tiny_choice\n{common}output_type: multiple_choice\ndoc_to_choice: choices\n"
        "doc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    (folder / "generation.yaml").write_text(
        f"task: tiny_generation\n{common}output_type: generate_until\n"
        "doc_to_target: '{{choices[answer]}}'\n"
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 5\n  do_sample: false\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    return folder


def evaluate(base: Path, tasks: Path, alpha: Any, cache: Path | None = None) -> dict[str, Any]:
    return simple_evaluate(
        model="libortho",
        model_args={"path": str(base), "ortho_alpha": alpha, "device": "cpu", "batch_size": 2},
        tasks=["tiny_choice", "tiny_generation"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        use_cache=None if cache is None else str(cache),
        log_samples=True,
        bootstrap_iters=0,
    )


def answers(results: dict[str, Any]) -> list[Any]:
    return [sample["resps"] for rows in results["samples"].values() for sample in rows]


def test_log_likelihoods_are_those_of_the_model_at_that_alpha(base: Path, tasks: Path) -> None:
    setting = {"repair": 1, "tenant-1": 0.5}
    results = evaluate(base, tasks, setting)
    model = load(base, ["repair", "tenant-1"])
    tokenizer = model.ortho.base.checkpoint.tokenizer()
    for sample, row in zip(results["samples"]["tiny_choice"], QUESTIONS, strict=True):
        for choice, (found,) in zip(row["choices"], sample["resps"], strict=True):
            ids = tokenizer(f"{row['question']} {choice}", return_tensors="pt").input_ids
            start = tokenizer(row["question"], return_tensors="pt").input_ids.shape[1]
            with torch.no_grad(), gate.alpha(setting):
                log_probs = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
            picked = log_probs.gather(1, ids[0, 1:, None])[start - 1 :].sum()
            assert float(found[0]) == pytest.approx(float(picked), abs=1e-3)


def test_alpha_is_in_the_results_and_in_the_cache_key(
    base: Path, tasks: Path, tmp_path: Path
) -> None:
    settings = [
        0,
        {"tenant-1": 1},
        {"tenant-2": 1, "repair": 0},
        {"tenant-1": 0.5, "repair": 1},
    ]
    fresh = [answers(evaluate(base, tasks, setting)) for setting in settings]
    assert len({json.dumps(one) for one in fresh}) == len(settings)
    for _ in range(2):  # filling the cache, then served from it
        for setting, expected in zip(settings, fresh, strict=True):
            results = evaluate(base, tasks, setting, tmp_path / "cache")
            assert answers(results) == expected
            config = results["config"]
            assert config["ortho_alpha"] == setting
            opened = {name: one["alpha"] for name, one in config["ortho_streams"].items()}
            named = setting.items() if isinstance(setting, dict) else ()
            assert opened == {name: value for name, value in named if value}
            assert config["model_sha"] == BaseStream.open(base).id


def test_the_cache_is_used(base: Path, tasks: Path, tmp_path: Path, monkeypatch) -> None:
    evaluate(base, tasks, {"tenant-1": 1}, tmp_path / "cache")

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(OrthoLM, "_model_call", never)
    monkeypatch.setattr(OrthoLM, "_model_generate", never)
    evaluate(base, tasks, {"tenant-1": 1}, tmp_path / "cache")
    with pytest.raises(AssertionError, match="asked again"):
        evaluate(base, tasks, {"tenant-1": 0.5}, tmp_path / "cache")


def test_bad_arguments_are_refused_before_anything_is_loaded(base: Path, monkeypatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(lm_eval, "load", never)
    with pytest.raises(ConfigError, match="needs path=BASE; it takes no pretrained, peft"):
        OrthoLM(pretrained="gpt2", peft="x")
    with pytest.raises(AlphaError, match=r"ambiguous.*tenant-1, tenant-2"):
        OrthoLM(path=str(base), ortho_alpha=1, device="cpu")
    with pytest.raises(AlphaError, match="expected a finite number"):
        OrthoLM(path=str(base), ortho_alpha="tenant-1=2", device="cpu")
    with pytest.raises(AlphaError, match="not attached: ghost"):
        OrthoLM(path=str(base), ortho_alpha="ghost=1+tenant-1=1", device="cpu")


def test_the_command_line(base: Path, tasks: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "libortho.integrations.lm_eval", "--model", "libortho"]
    command += ["--model_args", f"path={base},ortho_alpha=tenant-1=1+repair=1"]
    command += ["--tasks", "tiny_choice", "--include_path", str(tasks), "--device", "cpu"]
    command += ["--output_path", str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    (file,) = (tmp_path / "out").rglob("results_*.json")
    config = json.loads(file.read_text())["config"]
    assert config["ortho_alpha"] == {"tenant-1": 1.0, "repair": 1.0}
