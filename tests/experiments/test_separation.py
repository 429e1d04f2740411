"""The table of methods on one contaminated model: complete, resumable, and in its own words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from libortho import records
from libortho.baselines import UnlearnOptions
from libortho.experiments.gates import gates
from libortho.experiments.natural import Training
from libortho.experiments.separation import NAME, separation
from libortho.experiments.separation_plan import Plan
from libortho.report import render
from libortho.split import CurvatureOptions, ForgetOptions, ResidualOptions
from libortho.texts import Text, pydoc_topics

FEW = {"neighbours": 8, "neighbour_batch": 4, "replay_pool": 8, "replay_window": 32}
TINY = Plan(
    members=4,
    exposures=(30,),
    window=32,
    training=Training(steps=30, batch=1, lr=3e-3, trained="everything"),
    bits=(4, 8),
    residual=ResidualOptions(rounding="mse", windows=4, window=32),
    curvature=CurvatureOptions(rounding="mse", tokens=128, window=32),
    forget=ForgetOptions(rounding="mse", steps=2, fisher_windows=2, **FEW),
    unlearn=UnlearnOptions(steps=2, **FEW),
    tokens=256,
    problems=2,
    relearn_steps=2,
)


@pytest.fixture(scope="module")
def text() -> Text:
    return Text("topics", "0" * 64, pydoc_topics().documents[:6])


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoint: Path, text: Text):
    folder = tmp_path_factory.mktemp("separation")
    (record,) = separation(tiny_checkpoint, folder, seeds=[0], plan=TINY, text=text)
    return folder, record


def test_every_method_has_its_figures(run) -> None:
    _, record = run
    assert record.experiment == NAME
    assert record.figures["recited"] == record.n
    states = {"contaminated": ["fp"], "never-exposed": ["alpha0"], "residual-8": ["fp"]}
    measured = ["residual-4", "curvature", "forget", "forget-half", "forget-alone", "mask", "ssd"]
    states |= {name: ["alpha0", "alpha1"] for name in measured}
    states |= {name: ["alpha0"] for name in ("wanda", "sparsegpt", "npo", "graddiff")}
    assert set(record.methods) == set(states)
    for name, wanted in states.items():
        figures = record.methods[name].figures
        for state in wanted:
            for key in ("recall", "nll", "exposure", "auc", "ppl", "arithmetic"):
                assert f"{key}_{state}" in figures, (name, key, state)
        attacked = wanted[0]
        assert f"recall_requantised_{attacked}" in figures
        assert f"relearn_half_{attacked}" in figures
        raw = records.load_raw(record, record.methods[name].raw)
        assert len(raw["nll"][attacked]["members"]) == figures["members"]
    assert "recall_unnamed" in record.methods["forget-half"].figures
    assert json.loads(record.to_json())["experiment"] == NAME


def test_the_page_shows_it(run, tmp_path: Path) -> None:
    _, record = run
    records.write(record, tmp_path / "record.json")
    render([records.read(tmp_path / "record.json")], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "forget-alone" in page
    assert "curvature" in page


def test_the_contaminated_model_knows_what_is_taken_out(run) -> None:
    _, record = run
    figures = {name: method.figures for name, method in record.methods.items()}
    assert figures["contaminated"]["recall_fp"] == 1.0
    assert figures["never-exposed"]["recall_alpha0"] == 0.0
    assert figures["never-exposed"]["nll_alpha0"] > 3 * figures["contaminated"]["nll_fp"]
    assert record.verdict == "PASS"


def test_a_run_goes_on_after_the_last_method(run, tiny_checkpoint, text, monkeypatch) -> None:
    folder, record = run

    def never(*_, **__):
        raise AssertionError("nothing is left to make")

    for name in ("split", "contaminate", "prune", "unlearn", "quantize", "rounded"):
        monkeypatch.setattr(f"libortho.experiments.separation.{name}", never)
    (again,) = separation(tiny_checkpoint, folder, seeds=[0], plan=TINY, text=text)
    assert again.methods.keys() == record.methods.keys()
    assert again.methods["forget"].figures == record.methods["forget"].figures


def test_a_model_that_recites_nothing_is_void(tmp_path: Path, tiny_checkpoint, text) -> None:
    plan = replace(TINY, training=Training(steps=1, batch=1, lr=1e-6), exposures=(1,))
    (record,) = separation(tiny_checkpoint, tmp_path, seeds=[0], plan=plan, text=text)
    assert record.verdict == "VOID"
    assert "recall of the contaminated model is 0" in record.reason
    assert not record.methods


def test_gates_name_what_is_missed() -> None:
    mixed = {"ppl_fp": 10.0, "nll_fp_controls": 100.0}
    good = {
        "recall_alpha0": 0.0,
        "exposure_alpha0": 1.6,
        "auc_alpha0": 0.5,
        "ppl_alpha0": 10.2,
        "nll_alpha0_controls": 95.0,
        "recall_requantised_alpha0": 0.0,
        "arithmetic_alpha0": 0.8,
        "relearn_half_alpha0": 30.0,
        "recall_unnamed": 0.7,
    }
    methods = {
        "curvature": good,
        "forget": good,
        "forget-half": good,
        "ssd": good | {"relearn_half_alpha0": 5.0},
        "residual-4": {"arithmetic_alpha0": 0.85},
    }
    assert all(check.held for check in gates(methods, mixed))
    refusing = good | {"nll_alpha0_controls": 150.0, "auc_alpha0": 0.2, "ppl_alpha0": 10.9}
    missed = [c.name for c in gates(methods | {"forget": refusing}, mixed) if not c.held]
    assert missed == [
        "forget: AUC at α=0",
        "forget: perplexity",
        "forget: control NLL to the mixed model's",
    ]
