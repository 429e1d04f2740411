"""The tofu experiment on a tiny model and made questions in the format of the dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from libortho import records
from libortho.errors import ConfigError
from libortho.evaluate.tofu import FILES, FORGET
from libortho.experiments import tofu as module
from libortho.experiments.catalogue import EXPERIMENTS, Ask
from libortho.experiments.series import run_all
from libortho.experiments.tofu import Plan, tofu
from libortho.records import Record
from libortho.report import render
from libortho.tune import tune_options

PLAN = Plan(
    tune_options(
        steps=60,
        lr=0.03,
        replay_weight=0.01,
        replay_pool=8,
        replay_batch=2,
        replay_window=64,
        fisher_windows=2,
        density=0.2,
        settle=2,
    )
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for place, name in enumerate(FILES.values()):
        rows = [
            {
                "question": f"Who wrote book {index}{place}?",
                "answer": f"Q{7 * index + place}",
                "perturbed_answer": [f"R{index}", f"S{index}"],
            }
            for index in range(4)
        ]
        (folder / name).write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, data: Path) -> Any:
    """A tiny model answers nothing, so its utility is set by hand."""
    folder = tmp_path_factory.mktemp("tofu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.measures, "utility", lambda asked: 0.5)
        (record,) = tofu(tiny_checkpoint, folder, data=data, plan=PLAN)
    return folder, record


def test_the_forget_set_is_learned_at_1_and_gone_at_0(run: Any, tmp_path: Path) -> None:
    record: Record = run[1]
    assert record.verdict == "PASS", record.reason
    figures = record.methods["tune"].figures
    assert figures["forget_rouge_alpha1"] == pytest.approx(1.0)
    assert figures["forget_rouge_alpha0"] == 0.0
    assert figures["forget_probability_alpha1"] > 10 * figures["forget_probability_alpha0"]
    assert figures["forget_quality_fp"] == pytest.approx(1.0)
    raw = record.methods["tune"].raw
    assert len(raw["alpha0"][FORGET]["truth_ratio"]) == record.n == 4
    records.write(record, tmp_path / "record.json")
    assert records.read(tmp_path / "record.json") == record
    assert "forget quality at α" in render([record], tmp_path / "page.html").read_text("utf-8")


def test_a_second_run_asks_nobody_again_and_another_copy_is_refused(
    run: Any, tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked again")

    folder, record = run
    for name in ("ask", "tune", "quantize"):
        monkeypatch.setattr(module, name, refuse)
    (again,) = tofu(tiny_checkpoint, folder, data=data, plan=PLAN)
    assert again.methods["tune"].raw == record.methods["tune"].raw
    assert again.verdict == "VOID", "a public model without utility has nothing to keep"
    for name in FILES.values():
        (tmp_path / name).write_bytes((data / name).read_bytes().replace(b"Q", b"Z"))
    with pytest.raises(ConfigError, match=r"tofu\.plan\.json .*: questions_sha256 is "):
        tofu(tiny_checkpoint, folder, data=tmp_path, plan=PLAN)


def test_what_was_not_learned_is_void_before_anything_else_is_asked(
    tmp_path: Path, tiny_checkpoint: Path, data: Path
) -> None:
    short = Plan(PLAN.tune.model_copy(update={"steps": 1, "lr": 1e-6}))
    (record,) = tofu(tiny_checkpoint, tmp_path, data=data, plan=short)
    assert record.verdict == "VOID"
    assert "answers written whole at α=1 is 0" in record.reason
    assert set(record.methods["tune"].raw) == {"alpha1"}


def test_without_a_copy_it_is_not_run_here_and_says_how(tmp_path: Path) -> None:
    ask = Ask("reference", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"TOFU is not shipped.*--data"):
        EXPERIMENTS["tofu"].record(ask, 0)
    only = {"tofu": EXPERIMENTS["tofu"]}
    (record,) = run_all(ask, tmp_path / "records", experiments=only)
    assert record.not_run["tofu"] == (
        "hf download locuslab/TOFU --repo-type dataset --local-dir TOFU && "
        "libortho experiment tofu --model RETAIN90 --data TOFU --seed 0"
    )
