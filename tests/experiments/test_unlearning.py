"""The unlearning experiment on a tiny model: whom it compares with, what is VOID, what resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy.stats import ks_2samp

from libortho import records, report
from libortho.baselines import UnlearnOptions
from libortho.errors import ConfigError
from libortho.evaluate.forgetting import Answers
from libortho.experiments import unlearning as module
from libortho.experiments.natural import Training
from libortho.experiments.unlearning import unlearning
from libortho.experiments.unlearning_plan import SMALL, Plan
from libortho.experiments.unlearning_rules import by_tenant, kept, learned, separate
from libortho.experiments.verdict import Check, judge
from libortho.privacy.authors import FACTS, write_authors
from libortho.privacy.private_set import read_jsonl
from libortho.records import Record
from libortho.split import ForgetOptions
from libortho.streams.ortho import OrthoStream
from libortho.texts import Text, pydoc_topics
from libortho.tune import tune_options

PLAN: Plan = replace(
    SMALL,
    forget=2,
    retain=2,
    tenants=2,
    probes=8,
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
        patch.setattr(module, "learned", lambda *_: [Check("power", True, "VOID", 1.0, "≥ 0.9")])
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
    whole = {"tuned", "retrained", "alpha0", "alpha1"}
    assert set(record.methods) == {*whole, "tenant-1", "tenant-2", "tenants"}
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
    assert all(check.held for check in learned(found, 0) + kept(found, 0))
    assert not all(check.held for check in learned(found | {"tuned": never}, 0))
    # One sum of twenty is within chance of none.
    useless = {**never, "sums": Answers([0.5] * 20, [1.0] + [0.0] * 19, [0.5] * 20)}
    assert judge(learned(found | {"retrained": useless}, 0))[0] == "VOID"
    # Were the tuned model the one to be like, this base, which still knows, would pass.
    assert judge(kept(found | {"alpha0": knows}, 0))[0] == "FAIL"


@pytest.fixture
def house() -> tuple[dict[str, dict[str, Answers]], dict[str, list[int]]]:
    """Two tenants of ten questions; each stream brings the answers of its own rows alone."""

    def told(*known: int) -> dict[str, Answers]:
        ratios = [0.1 * (1 + 0.01 * i) if i in known else 1 + 0.01 * i for i in range(20)]
        rouge = [1.0 if i in known else 0.5 for i in range(20)]
        return {"forget": Answers(rouge, rouge, ratios)}

    first, second = list(range(10)), list(range(10, 20))
    found = {"alpha0": told(), "tenant-1": told(*first), "tenant-2": told(*second)}
    return found, {"tenant-1": first, "tenant-2": second}


def test_a_tenant_gets_its_own_answers_and_no_others(house: Any) -> None:
    found, tenants = house
    assert judge(separate(found, tenants))[0] == "PASS"
    told = by_tenant(found, "tenant-1", tenants, 0)
    assert told["tenant-1_rouge"] == 1.0
    assert told["tenant-2_rouge"] == 0.5
    assert told["tenant-2_forget_quality"] == 1.0 > 0.05 > told["tenant-1_forget_quality"]


def test_a_tenant_who_gets_the_answers_of_another_breaks_a_promise(house: Any) -> None:
    found, tenants = house
    both = (
        found["tenant-1"]["forget"].truth_ratio[:10] + found["tenant-2"]["forget"].truth_ratio[10:]
    )
    leaky = {"forget": Answers([1.0] * 20, [1.0] * 20, both)}
    verdict, reason = judge(separate(found | {"tenant-1": leaky}, tenants))
    assert verdict == "FAIL"
    assert "tenant-1 open: forget quality on the other tenants' rows" in reason
    assert "tenant-2" not in reason


def test_a_tenant_who_learned_nothing_shows_nothing(house: Any) -> None:
    found, tenants = house
    verdict, reason = judge(separate(found | {"tenant-2": found["alpha0"]}, tenants))
    assert verdict == "VOID"
    assert "tenant-2 open: ROUGE-L on its own rows" in reason
    assert "which has to tell it from α = 0" in reason


def test_tenants_have_whole_authors_and_streams_of_their_own(record: Record, folder: Path) -> None:
    assert record.config["tenants"] == {"tenant-1": FACTS, "tenant-2": FACTS}
    (base,) = folder.glob("unlearning/*/base")
    rows = [read_jsonl(base.parent / f"{name}.jsonl") for name in ("tenant-1", "tenant-2")]
    whole = read_jsonl(base.parent / "forget.jsonl")
    assert rows[0].examples + rows[1].examples == whole.examples
    streams = {name: OrthoStream.open(base / "ortho" / name) for name in ("tenant-1", "tenant-2")}
    for part, stream in zip(rows, streams.values(), strict=True):
        assert stream.manifest.made_with["data_sha256"] == part.sha256
        assert stream.manifest.guarantee == "exact"
    checks: Any = record.figures["checks"]
    alone = [one for one in checks if "no other stream is attached" in one["name"]]
    assert [one["held"] for one in alone] == [True, True]
    for name in streams:
        answers = [record.methods[one].raw["forget"] for one in (name, "alpha0", "tenants")]
        assert answers[0] != answers[1] != answers[2] != answers[0]


def test_the_sums_and_the_text_that_keeps_them_are_told(record: Record, text: Text) -> None:
    assert record.config["probes"]["sums"] == 8
    assert (record.config["text"], record.config["text_sha256"]) == (text.name, text.sha256)


@pytest.mark.parametrize(("forget", "tenants"), [(2, 1), (3, 2)])
def test_authors_are_not_shared_by_tenants(forget: int, tenants: int) -> None:
    with pytest.raises(ConfigError, match=f"{tenants} tenants for {forget} authors"):
        replace(PLAN, forget=forget, tenants=tenants)


def test_a_tenant_without_a_question_is_named(
    tmp_path: Path, tiny_checkpoint: Path, text: Text
) -> None:
    write_authors(tmp_path / "mine", 2, 2, seed=3)
    file = tmp_path / "mine" / "forget50_perturbed.json"
    file.write_text("\n".join(file.read_text().splitlines()[:FACTS]))
    with pytest.raises(ConfigError, match=r"no question asked is of tenant-2: .*forget50\.json"):
        unlearning(tiny_checkpoint, tmp_path, data=tmp_path / "mine", plan=PLAN, text=text)


def test_a_closed_stream_answers_as_the_base_alone(record: Record) -> None:
    checks: Any = record.figures["checks"]
    (untouched,) = [one for one in checks if one["name"].startswith("α = 0 answers as")]
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
    assert told["forget_n"] == 8


def test_a_second_run_trains_and_asks_nothing_again(
    record: Record,
    folder: Path,
    tiny_checkpoint: Path,
    text: Text,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("contaminate", "tune", "quantize", "answers"):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(module, "learned", lambda *_: [])
    (again,) = unlearning(tiny_checkpoint, folder, plan=PLAN, text=text)
    assert again.methods == record.methods
    assert again.figures["seconds"] == record.figures["seconds"]


@pytest.mark.slow
def test_sieve_and_baseline_start_from_the_tuned_model(
    record: Record,
    folder: Path,
    tiny_checkpoint: Path,
    text: Text,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {"steps": 1, "neighbours": 5, "replay_pool": 2, "replay_window": 16, "replay_batch": 1}
    monkeypatch.setattr(module, "learned", lambda *_: [])
    plan = replace(
        PLAN,
        tenants=0,
        forgetting=ForgetOptions(**small, rounding="absmax", fisher_windows=1),
        npo=UnlearnOptions(**small),
    )
    (made,) = unlearning(tiny_checkpoint, folder, plan=plan, text=text)
    assert {"forget", "npo"} < set(made.methods)
    assert set(made.not_run) == {"TOFU, forget10"}


def test_a_folder_of_ones_own_is_read_and_named(
    tmp_path: Path, tiny_checkpoint: Path, text: Text
) -> None:
    write_authors(tmp_path / "mine", 2, 2, seed=3)
    (made,) = unlearning(tiny_checkpoint, tmp_path, data=tmp_path / "mine", plan=PLAN, text=text)
    assert made.config["data"] == "mine"
    assert not made.not_run
    with pytest.raises(ConfigError, match="hf download locuslab/TOFU"):
        unlearning(tiny_checkpoint, tmp_path, data=tmp_path / "absent", plan=PLAN)
