"""The unlearning experiment on a tiny model: whom it compares with, what is VOID, what resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy.stats import ks_2samp

from libortho import records, report
from libortho.errors import ConfigError
from libortho.evaluate.forgetting import Answers
from libortho.experiments import unlearning as module
from libortho.experiments.natural import Training
from libortho.experiments.unlearning import SMALL, Plan, _kept, _learned, unlearning
from libortho.experiments.verdict import Check, judge
from libortho.privacy.authors import write_authors
from libortho.records import Record
from libortho.split import ForgetOptions
from libortho.texts import Text, pydoc_topics
from libortho.tune import tune_options

PLAN: Plan = replace(
    SMALL,
    forget=1,
    retain=1,
    probes=5,
    exposures=1,
    window=16,
    training=Training(steps=2, batch=1),
    tune=tune_options(steps=2, settle=0, replay_batch=1, replay_window=16, replay_pool=2),
)


@pytest.fixture(scope="module")
def text() -> Text:
    return replace(pydoc_topics(), documents=pydoc_topics().documents[:4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unlearning")


@pytest.fixture(scope="module")
def void(folder: Path, tiny_checkpoint: Path, text: Text) -> Record:
    (made,) = unlearning(tiny_checkpoint, folder, plan=PLAN, text=text)
    return made


@pytest.fixture(scope="module")
def record(void: Record, folder: Path, tiny_checkpoint: Path, text: Text) -> Record:
    """As if two steps had taught something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_learned", lambda *_: [Check("power", True, "VOID", 1.0, "≥ 0.9")])
        (made,) = unlearning(tiny_checkpoint, folder, plan=PLAN, text=text)
    return made


def test_a_model_that_learned_nothing_has_nothing_to_forget(void: Record, tmp_path: Path) -> None:
    assert void.verdict == "VOID"
    assert "tuned: ROUGE-L on the forget set" in void.reason
    assert set(void.methods) == {"tuned", "retrained"}, "nothing is trained after what decides"
    page = report.render([void], tmp_path / "report.html").read_text()
    assert "This run shows nothing" in page
    assert "libortho experiment unlearning --data TOFU" in page


def test_forget_quality_compares_with_the_model_that_never_saw_the_rows(record: Record) -> None:
    never = record.methods["retrained"].raw["forget"]["truth_ratio"]
    wrong = record.methods["tuned"].raw["forget"]["truth_ratio"]
    assert set(record.methods) == {"tuned", "retrained", "alpha0", "alpha1"}
    for method in record.methods.values():
        ours = method.raw["forget"]["truth_ratio"]
        assert method.figures["forget_quality"] == ks_2samp(ours, never).pvalue
    assert record.methods["retrained"].figures["forget_quality"] == 1.0
    assert wrong != never


def test_the_rules_judge_against_the_model_that_never_saw_the_rows() -> None:
    def known(*, forget: float) -> dict[str, Answers]:
        rows = [forget * (1 + 0.01 * i) for i in range(20)]
        other = Answers([0.9] * 20, [0.9] * 20, [0.1] * 20)
        return {"forget": Answers([0.9] * 20, [0.95] * 20, rows), "retain": other}

    never, knows = known(forget=1.0), known(forget=0.1)
    found = {"tuned": knows, "retrained": never, "alpha0": never, "alpha1": knows}
    assert all(check.held for check in _learned(found, 0) + _kept(found, 0))
    assert not all(check.held for check in _learned(found | {"tuned": never}, 0))
    useless = {**never, "sums": Answers([0.5] * 20, [0.0] * 20, [0.5] * 20)}
    assert judge(_learned(found | {"retrained": useless}, 0))[0] == "VOID"
    # Were the tuned model the one to be like, this base, which still knows, would pass.
    assert judge(_kept(found | {"alpha0": knows}, 0))[0] == "FAIL"


def test_a_closed_stream_answers_as_the_base_alone(record: Record) -> None:
    checks: Any = record.figures["checks"]
    (untouched,) = [one for one in checks if "bit for bit" in one["name"]]
    assert untouched["held"]
    assert untouched["decides"] == "FAIL"
    closed, opened = (record.methods[name].raw for name in ("alpha0", "alpha1"))
    assert closed != opened


def test_what_is_generated_is_called_what_it_is(record: Record, tmp_path: Path) -> None:
    assert record.config["data"] == "fictional authors"
    assert "TOFU, forget10" in record.not_run
    assert "`npo` on the tuned model" in record.not_run
    records.write(record, tmp_path / "record.json")
    page = report.render([records.read(tmp_path / "record.json")], tmp_path / "r.html").read_text()
    assert "private stream, α\u00a0=\u00a00" in page
    assert "fictional authors" in page
    assert "mathdefault" not in page
    told = record.methods["alpha1"].figures
    assert told["forget_rouge"] == fmean(record.methods["alpha1"].raw["forget"]["rouge"])
    assert told["forget_n"] == 5


def test_a_second_run_trains_nothing_again(
    record: Record,
    folder: Path,
    tiny_checkpoint: Path,
    text: Text,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("contaminate", "tune", "quantize"):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(module, "_learned", lambda *_: [])
    (again,) = unlearning(tiny_checkpoint, folder, plan=PLAN, text=text)
    assert again.methods == record.methods


@pytest.mark.slow
def test_sieve_and_baseline_start_from_the_tuned_model(
    record: Record,
    folder: Path,
    tiny_checkpoint: Path,
    text: Text,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {"steps": 1, "neighbours": 5, "replay_pool": 2, "replay_window": 16, "replay_batch": 1}
    monkeypatch.setattr(module, "_learned", lambda *_: [])
    plan = replace(
        PLAN,
        forgetting=ForgetOptions(**small, rounding="absmax", fisher_windows=1),
        npo=module.UnlearnOptions(**small),
    )
    (made,) = unlearning(tiny_checkpoint, folder, plan=plan, text=text)
    assert {"forget", "npo"} < set(made.methods)
    assert set(made.not_run) == {"TOFU, forget10"}


def test_a_folder_of_ones_own_is_read_and_named(
    tmp_path: Path, tiny_checkpoint: Path, text: Text
) -> None:
    write_authors(tmp_path / "mine", 1, 1, seed=3, sums=3)
    (made,) = unlearning(tiny_checkpoint, tmp_path, data=tmp_path / "mine", plan=PLAN, text=text)
    assert made.config["data"] == "mine"
    assert not made.not_run
    with pytest.raises(ConfigError, match="hf download locuslab/TOFU"):
        unlearning(tiny_checkpoint, tmp_path, data=tmp_path / "absent", plan=PLAN)
