"""`experiment all`: one log, records that are not made twice, and what is not run here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from libortho import records
from libortho.cli.experiments import Name
from libortho.errors import ConfigError, LibOrthoError
from libortho.experiments.catalogue import EXPERIMENTS, Ask, Experiment
from libortho.experiments.series import LOG, run_all
from libortho.records import Record

INSTALL = "pip install something"


class Runs:
    """Experiments that count how often they were run."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, Ask]] = []
        self.broken = False
        self.absent = True

    def run(self, name: str) -> Experiment:
        def made(ask: Ask, seed: int) -> list[Record]:
            self.asked.append((name, seed, ask))
            if self.broken and name == "second":
                raise LibOrthoError("it broke")
            return [
                records.new(name, "PASS", n=ask.members or 1, seeds=[seed], backend="reference")
            ]

        return Experiment(made, frozenset({"members"} if name == "first" else {}), (0, 1))

    def missing(self) -> None:
        if self.absent:
            raise ConfigError(f"something is not installed: {INSTALL}")

    def experiments(self) -> dict[str, Experiment]:
        third = self.run("third")
        lacking = Experiment(third.run, third.takes, (0,), self.missing, INSTALL)
        return {"first": self.run("first"), "second": self.run("second"), "third": lacking}


def names(runs: Runs) -> list[tuple[str, int]]:
    found = [(name, seed) for name, seed, _ in runs.asked]
    runs.asked.clear()
    return found


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    runs, ask, where = Runs(), Ask("tiny", tmp_path / "out"), tmp_path / "records"
    run_all(ask, where, experiments=runs.experiments(), seeds=[0])
    assert names(runs) == [("first", 0), ("second", 0)]
    run_all(ask, where, experiments=runs.experiments())
    assert names(runs) == [("first", 1), ("second", 1)]
    # A record that was altered or lost is made again; so is one that answers another question.
    records.write(
        records.new("first", "FAIL", n=1, seeds=[0], backend="x"), where / "first/seed-0.json"
    )
    (where / "second/seed-1.json").unlink()
    made = run_all(ask, where, experiments=runs.experiments())
    assert names(runs) == [("first", 0), ("second", 1)]
    assert len(made) == 5
    run_all(Ask("tiny", tmp_path / "out", members=7), where, experiments=runs.experiments())
    assert names(runs) == [("first", 0), ("first", 1)]


def test_each_experiment_gets_the_part_of_the_question_that_it_takes(tmp_path: Path) -> None:
    runs = Runs()
    ask = Ask("tiny", tmp_path / "out", members=7, small=True, device="cuda")
    run_all(ask, tmp_path / "records", experiments=runs.experiments(), seeds=[0])
    (_, _, first), (_, _, second) = runs.asked
    assert (first.members, first.small, first.device) == (7, False, "cpu")
    assert second.members is None


def test_a_missing_package_is_recorded_and_tried_again(tmp_path: Path) -> None:
    runs, ask, where = Runs(), Ask("tiny", tmp_path / "out"), tmp_path / "records"
    run_all(ask, where, experiments=runs.experiments(), seeds=[0])
    record = records.read(where / "third/seed-0.json")
    assert record.verdict == "VOID"
    assert record.not_run["third"].startswith(f"{INSTALL} && libortho experiment third")
    names(runs)
    runs.absent = False
    run_all(ask, where, experiments=runs.experiments(), seeds=[0])
    assert names(runs) == [("third", 0)]
    assert records.read(where / "third/seed-0.json").verdict == "PASS"
    runs.absent = True
    run_all(Ask("other", tmp_path / "out"), where, experiments=runs.experiments(), seeds=[0])
    assert records.read(where / "third/seed-0.json").verdict == "PASS"


def test_one_that_fails_is_told_after_the_others_were_run(tmp_path: Path) -> None:
    runs, ask, where = Runs(), Ask("tiny", tmp_path / "out"), tmp_path / "records"
    runs.broken = True
    with pytest.raises(LibOrthoError, match=r"second, seed 0: it broke"):
        run_all(ask, where, experiments=runs.experiments(), seeds=[0])
    assert (where / "third/seed-0.json").is_file()
    lines = [json.loads(line) for line in (ask.folder / LOG).read_text("utf-8").splitlines()]
    assert [line.get("error") for line in lines] == [None, "it broke", None]
    names(runs)
    runs.broken = False
    run_all(ask, where, experiments=runs.experiments(), seeds=[0])
    assert names(runs) == [("second", 0)]


def test_half_a_line_of_the_log_costs_that_line_only(tmp_path: Path) -> None:
    runs, ask, where = Runs(), Ask("tiny", tmp_path / "out"), tmp_path / "records"
    run_all(ask, where, experiments=runs.experiments(), seeds=[0])
    names(runs)
    log = ask.folder / LOG
    first, second, third = log.read_text("utf-8").splitlines()
    log.write_text(f"{first}\n{second[:20]}", "utf-8")
    run_all(ask, where, experiments=runs.experiments(), seeds=[0])
    assert names(runs) == [("second", 0)]
    assert json.loads(log.read_text("utf-8").splitlines()[2])["experiment"] == "second"
    assert third


def test_the_command_line_offers_what_the_catalogue_holds() -> None:
    assert {*get_args(Name)} == {*EXPERIMENTS, "all"}


def test_an_option_that_means_nothing_is_refused(tmp_path: Path) -> None:
    ask = Ask("tiny", tmp_path, members=5, problems=5, small=True)
    with pytest.raises(ConfigError, match=r"does not take --members$"):
        EXPERIMENTS["genius"].record(ask, 0)
    with pytest.raises(ConfigError, match=r"does not take --problems, --small$"):
        EXPERIMENTS["killswitch"].record(ask, 0)
