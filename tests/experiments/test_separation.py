"""The table of methods on one contaminated model: complete, resumable, and in its own words."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from libortho import records
from libortho.baselines import UnlearnOptions, rounded, unlearn
from libortho.errors import ConfigError, NumericsError
from libortho.experiments.gates import gates
from libortho.experiments.natural import Training
from libortho.experiments.power import power
from libortho.experiments.restored import beyond_half_precision, codes_unlike
from libortho.experiments.separation import NAME, separation
from libortho.experiments.separation_plan import Plan
from libortho.experiments.turns import turn
from libortho.quantize import quantize
from libortho.report import render
from libortho.split import CurvatureOptions, DeltaOptions, ForgetOptions, ResidualOptions
from libortho.texts import Text, pydoc_topics
from libortho.tune import tune_options

FEW = {"neighbours": 8, "neighbour_batch": 4, "replay_pool": 8, "replay_window": 32}
TRAINED = {"steps": 40, "lr": 0.03, "replay_weight": 0.01, "replay_pool": 8, "replay_batch": 2}
TRAINED |= {"replay_window": 64, "fisher_windows": 2, "density": 0.2, "settle": 2}
TINY = Plan(
    members=4,
    exposures=(30,),
    window=32,
    training=Training(steps=30, batch=1, lr=3e-3, trained="everything"),
    bits=(4, 8),
    densities=(0.0, 0.1),
    residual=ResidualOptions(rounding="mse", windows=4, window=32, density=0.3),
    curvature=CurvatureOptions(rounding="mse", tokens=128, window=32, whole=True),
    rhos=(0.5,),
    forget=ForgetOptions(rounding="mse", steps=2, fisher_windows=2, **FEW),
    moved=(),
    tune=tune_options(**TRAINED),
    delta=DeltaOptions(**TRAINED),
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
    gated = ["tune", "delta", "residual-4", "curvature", "curvature-0.5"]
    gated += ["forget", "forget-half", "forget-alone", "mask", "ssd"]
    states |= {name: ["alpha0", "alpha1"] for name in gated}
    states |= {name: ["alpha0"] for name in ("wanda", "sparsegpt", "npo", "graddiff")}
    assert set(record.methods) == set(states)
    for name, wanted in states.items():
        figures = record.methods[name].figures
        for state in wanted:
            for key in ("recall", "nll", "exposure", "auc", "ppl", "arithmetic"):
                assert f"{key}_{state}" in figures, (name, key, state)
            ((times, (recited, shown)),) = figures[f"recall_by_exposure_{state}"].items()
            assert (times, shown) == ("30", figures["members"])
            assert recited == figures[f"extracted_{state}"]
        attacked = wanted[0]
        point_of_a_sweep = name == "curvature-0.5"
        assert (f"recall_requantised_{attacked}" in figures) != point_of_a_sweep
        assert (f"relearn_half_{attacked}" in figures) != point_of_a_sweep
        raw = records.load_raw(record, record.methods[name].raw)
        assert len(raw["nll"][attacked]["members"]) == figures["members"]
    assert "recall_unnamed" in record.methods["forget-half"].figures
    assert json.loads(record.to_json())["experiment"] == NAME


def test_the_stream_of_a_residual_is_swept(run) -> None:
    _, record = run
    row = record.methods["residual-4"].figures
    none, few, many = row["sweep"]
    assert [one["density"] for one in (none, few, many)] == [0.0, 0.1, 0.3]
    assert none["nll"] == row["nll_alpha0"]
    assert many["nll"] == row["nll_alpha1"]
    assert none["ppl"] != few["ppl"] != many["ppl"]


def test_alpha_1_is_what_a_row_was_made_from(run) -> None:
    _, record = run
    rows = {name: method.figures for name, method in record.methods.items()}
    assert rows["tune"]["base_is_public"]
    assert rows["delta"]["base_is_public"]
    assert rows["curvature"]["weights_beyond_fp16"] == 0
    assert rows["forget"]["codes_unlike"] == rows["forget"]["weights_unlike"] == 0
    assert rows["ssd"]["codes_unlike"] == 0
    alike = rows["residual-4"]["nll_alpha0"]
    assert rows["forget"]["nll_alpha1"] == pytest.approx(alike, rel=1e-3)
    for name in ("tune", "delta", "curvature", "forget", "forget-half", "mask", "residual-4"):
        assert next(one["name"] for one in rows[name]["power"]) == f"{name}: recall at α=1"
        assert rows[name]["void"] is None


def test_a_stream_that_restores_something_else_is_found(run, tmp_path: Path) -> None:
    folder, _ = run
    seed = folder / NAME / "seed-0"
    other = tmp_path / "other"
    rounded(seed / "contaminated", tmp_path / "plain", bits=2)
    quantize(tmp_path / "plain", other, method="mse")
    codes, weights = codes_unlike(seed / "forget", other)
    assert codes > 0
    assert weights > 0
    assert beyond_half_precision(seed / "curvature", tmp_path / "plain") > 0


def test_a_row_that_another_process_is_at_is_waited_for(
    run, tiny_checkpoint: Path, text, tmp_path: Path
) -> None:
    folder, record = run
    seed = folder / NAME / "seed-0"
    begun, asked = threading.Event(), threading.Event()

    def other() -> None:
        with turn(seed, "row-mask"):
            (seed / "mask.json").rename(tmp_path / "mask.json")
            begun.set()
            asked.wait(60)
            (tmp_path / "mask.json").rename(seed / "mask.json")

    def follow(stage: str, done: int, total: int, figures: object) -> None:
        if stage.startswith("npo"):  # a row after it: this process did not wait there
            asked.set()

    process = threading.Thread(target=other)
    process.start()
    begun.wait(60)
    (seed / "npo.json").rename(tmp_path / "npo.json")
    made = (seed / "mask" / "libortho.json").stat().st_mtime_ns
    again = separation(tiny_checkpoint, folder, seeds=[0], plan=TINY, text=text, progress=follow)[0]
    process.join()
    assert asked.is_set()
    assert (seed / "mask" / "libortho.json").stat().st_mtime_ns == made
    assert again.methods["mask"].figures == record.methods["mask"].figures


def test_a_folder_of_another_plan_is_refused(run, tiny_checkpoint: Path, text) -> None:
    folder, _ = run
    other = replace(TINY, training=replace(TINY.training, steps=31), bits=(3, 4))
    with pytest.raises(ConfigError) as refused:
        separation(tiny_checkpoint, folder, seeds=[0], plan=other, text=text)
    assert "plan.bits is [4, 8] there and [3, 4] here" in str(refused.value)
    assert "plan.training.steps is 30 there and 31 here" in str(refused.value)


def test_rows_of_another_contaminated_model_are_refused(run, tiny_checkpoint: Path, text) -> None:
    folder, _ = run
    weights = folder / NAME / "seed-0" / "contaminated" / "model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-4] + bytes(4))
        with pytest.raises(ConfigError, match=r"contaminated\.plan\.json .*: sha256 is "):
            separation(tiny_checkpoint, folder, seeds=[0], plan=TINY, text=text)
    finally:
        weights.write_bytes(kept)


def test_rows_are_not_compared_where_they_are_rounded_differently() -> None:
    with pytest.raises(ConfigError, match=r"expected a residual base that is rounded alike"):
        replace(TINY, bits=(3, 8))
    with pytest.raises(ConfigError, match=r"densities \[0.0, 0.5\]: expected at most"):
        replace(TINY, densities=(0.0, 0.5))


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

    for name in ("split", "tune", "contaminate", "prune", "unlearn", "quantize", "rounded"):
        monkeypatch.setattr(f"libortho.experiments.separation_ways.{name}", never)
    (again,) = separation(tiny_checkpoint, folder, seeds=[0], plan=TINY, text=text)
    assert again.methods.keys() == record.methods.keys()
    assert again.methods["forget"].figures == record.methods["forget"].figures


def test_a_row_that_diverges_is_void_and_tried_again(
    run, tiny_checkpoint, text, monkeypatch, tmp_path: Path
) -> None:
    folder, record = run
    file = folder / NAME / "seed-0" / "npo.json"
    kept = file.read_bytes()
    tried = []

    def diverge(*_, **__):
        tried.append(1)
        raise NumericsError("npo: step 7: the loss is nan")

    monkeypatch.setattr("libortho.experiments.separation_ways.unlearn", diverge)
    try:
        file.unlink()
        separation(tiny_checkpoint, folder, seeds=[0], plan=TINY, text=text)
        (found,) = separation(tiny_checkpoint, folder, seeds=[0], plan=TINY, text=text)
        assert len(tried) == 2
        assert not file.exists()
        monkeypatch.undo()
        (mended,) = separation(tiny_checkpoint, folder, seeds=[0], plan=TINY, text=text)
        assert mended.verdict == "PASS"
    finally:
        file.write_bytes(kept)
        file.with_name("npo.failed.json").unlink(missing_ok=True)
    assert found.verdict == "VOID"
    assert "npo is NumericsError: npo: step 7: the loss is nan" in found.reason
    assert found.figures["void_rows"] == ["npo"]
    assert found.methods["forget"].figures.keys() <= record.methods["forget"].figures.keys()
    records.write(found, tmp_path / "record.json")
    page = render([records.read(tmp_path / "record.json")], tmp_path / "page.html")
    assert "npo (VOID)" in page.read_text("utf-8")


def test_a_row_that_diverged_in_another_process_is_not_trained_again(
    run, tiny_checkpoint, text, monkeypatch, tmp_path: Path
) -> None:
    seed = run[0] / NAME / "seed-0"
    kept = {name: (seed / name).read_bytes() for name in ("npo.json", "graddiff.json")}
    fell = seed / "npo.failed.json"
    begun, asked, tried = threading.Event(), threading.Event(), []

    def diverge(*given, options, **more):
        if options.objective == "graddiff":
            return unlearn(*given, options=options, **more)
        tried.append(1)
        raise NumericsError("npo: step 7: the loss is nan")

    def other() -> None:
        with turn(seed, "row-npo"):
            begun.set()
            asked.wait(60)
            (tmp_path / fell.name).rename(fell)

    def follow(stage: str, done: int, total: int, figures: object) -> None:
        if stage.startswith("graddiff"):  # a row after it: this process did not wait there
            asked.set()

    monkeypatch.setattr("libortho.experiments.separation_ways.unlearn", diverge)
    common = {"seeds": [0], "plan": TINY, "text": text}
    try:
        (seed / "npo.json").unlink()
        (theirs,) = separation(tiny_checkpoint, run[0], **common)
        fell.rename(tmp_path / fell.name)
        (seed / "graddiff.json").unlink()
        process = threading.Thread(target=other)
        process.start()
        begun.wait(60)
        (ours,) = separation(tiny_checkpoint, run[0], progress=follow, **common)
        process.join()
    finally:
        for name, data in kept.items():
            (seed / name).write_bytes(data)
        fell.unlink(missing_ok=True)
    assert len(tried) == 1
    assert ours.methods["npo"] == theirs.methods["npo"]
    assert (ours.verdict, ours.reason) == (theirs.verdict, theirs.reason)


def test_a_model_that_recites_nothing_is_void(tmp_path: Path, tiny_checkpoint, text) -> None:
    plan = replace(TINY, training=Training(steps=1, batch=1, lr=1e-6), exposures=(1,))
    (record,) = separation(tiny_checkpoint, tmp_path, seeds=[0], plan=plan, text=text)
    assert record.verdict == "VOID"
    assert "recall of the contaminated model is 0" in record.reason
    assert not record.methods


EXACT = {"recall_alpha1": 1.0, "extracted_alpha0": 0, "base_is_public": True}
GOOD = {
    "stands_for": "residual-4",
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
MIXED = {"ppl_fp": 10.0, "nll_fp_controls": 100.0}
ALL_GOOD = {
    "tune": EXACT,
    "delta": EXACT,
    "curvature": GOOD,
    "forget": GOOD,
    "forget-half": GOOD,
    "ssd": GOOD | {"relearn_half_alpha0": 5.0},
    "residual-4": {"arithmetic_alpha0": 0.85},
}


def test_gates_name_what_is_missed() -> None:
    assert all(check.held for check in gates(ALL_GOOD, MIXED))
    refusing = GOOD | {"nll_alpha0_controls": 150.0, "auc_alpha0": 0.2, "ppl_alpha0": 10.9}
    leaking = EXACT | {"extracted_alpha0": 1, "base_is_public": False}
    missed = [
        c.name
        for c in gates(ALL_GOOD | {"forget": refusing, "delta": leaking}, MIXED)
        if not c.held
    ]
    assert missed == [
        "delta: extracted at α=0",
        "delta: its base is the public one",
        "forget: AUC at α=0",
        "forget: perplexity",
        "forget: control NLL to the mixed model's",
    ]


def test_a_gate_that_was_not_measured_is_missed_and_says_so() -> None:
    bare = {k: v for k, v in GOOD.items() if not k.startswith(("arithmetic", "relearn"))}
    found = gates(ALL_GOOD | {"forget": bare, "residual-4": {}}, MIXED)
    assert len(found) == len(gates(ALL_GOOD, MIXED))
    assert {check.name: check.found for check in found if not check.held} == {
        "forget: arithmetic to the residual base's": "not measured: arithmetic_alpha0",
        "forget: half-relearning to SSD's": "not measured: relearn_half_alpha0",
    }
    (nothing,) = [
        check
        for check in gates(ALL_GOOD | {"residual-4": {"arithmetic_alpha0": 0.0}}, MIXED)
        if not check.held
    ]
    assert nothing.found == "arithmetic_alpha0 to divide by is 0"


def opened(recall: float, stands_for: str, **more: object) -> dict[str, object]:
    return {"recall_alpha1": recall, "arithmetic_alpha1": 0.8, "stands_for": stands_for, **more}


def test_a_row_without_power_at_alpha_1_is_told() -> None:
    """The rounded model recites four of five; what gives it back may recite no more."""
    flags = {"exact": {"alpha0": {"members": [1, 1, 1, 1, 0]}, "fp": {"members": [1] * 5}}}
    rows = {
        "contaminated": {"recall_fp": 1.0, "arithmetic_fp": 0.85, "raw": flags},
        "never-exposed": {"recall_alpha0": 0.0},
        "residual-4": opened(0.8, "contaminated", raw=flags, arithmetic_alpha0=0.8),
        "curvature": opened(1.0, "contaminated", weights_beyond_fp16=3),
        "forget": opened(0.8, "residual-4", codes_unlike=0, weights_unlike=0),
        "forget-half": opened(0.5, "residual-4"),
        "mask": opened(0.8, "residual-4", codes_unlike=0, weights_unlike=9, arithmetic_alpha1=0.7),
    }
    rows["forget"]["made_with"] = {"options": {"rule": "codes"}}
    rows["mask"]["made_with"] = {"options": {"rule": "mask"}}
    found = power(rows, [3, 4])
    assert set(found) == {"residual-4", "curvature", "forget", "forget-half", "mask"}
    assert [c.name for checks in found.values() for c in checks if not c.held] == [
        "residual-4: recall at α=1",
        "curvature: weights at α=1 beyond an fp16 difference of the contaminated ones",
        "mask: arithmetic at α=1",
    ]
    rows["forget"]["weights_unlike"] = 1
    assert not power(rows, [3, 4])["forget"][-1].held
