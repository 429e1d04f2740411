"""The READMEs show what the records say, to the last digit."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipes.readme import ROOT, WORDS, filled
from recipes.readme_genius import WORDS as GENIUS
from recipes.readme_genius import line as genius_line
from recipes.readme_residual import WORDS as LINE
from recipes.readme_residual import line
from recipes.readme_speed import WORDS as SPEED
from recipes.readme_speed import line as speed_line
from recipes.readme_sums import SOURCE, clause
from recipes.readme_sums import WORDS as SUMS

from libortho import records
from libortho.errors import FormatError


@pytest.mark.parametrize("name", list(WORDS))
def test_figures_are_those_of_the_records(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert filled(text, name) == text, "run python -m recipes.readme"


def test_the_line_on_residual_adds_seeds_up() -> None:
    def row(state: str, **sweep: object) -> dict[str, object]:
        strata = {"64": [3, 4], "16": [1, 3]}
        nll = {f"nll_{state}": 2.5, f"nll_{state}_controls": 67.0}
        return {f"recall_by_exposure_{state}": strata, **nll, **sweep}

    points = [{"density": 0.0, "recall": 0.5}, {"density": 0.05, "recall": 0.6}]
    rows = {"residual-8": row("fp"), "residual-4": row("alpha0", sweep=points), "forget": {}}
    found = [
        records.new("separation", "PASS", n=7, seeds=[seed], backend="x", methods=rows)
        for seed in (0, 1)
    ]
    told = line(found, "[seed 0](x)", LINE["README.md"])
    assert "(16/64 exposures; `separation`, [seed 0](x))" in told
    assert "4 bits 2/6 6/8, 2.5 / 67.0; 8 bits 2/6 6/8, 2.5 / 67.0." in told
    assert told.endswith("up to 5% of the weights takes recall to 60% at 4 bits.")
    assert "VOID" not in told
    void = records.new("separation", "VOID", n=0, seeds=[0], backend="x")
    assert line([void], "", LINE["README.md"]) == ""


@pytest.mark.parametrize(
    ("void", "said"), [((0, 1), "2 bits (VOID) 2/8"), ((1,), "2 bits (VOID at seed 1) 2/8")]
)
def test_the_line_on_residual_says_which_rows_are_void(void: tuple[int, ...], said: str) -> None:
    row = {"recall_by_exposure_alpha0": {"4": [1, 4]}, "nll_alpha0": 1.0, "nll_alpha0_controls": 2}
    point = {"density": 0.05, "recall": 0.0}
    found = [
        records.new(
            "separation",
            "PASS",
            n=4,
            seeds=[seed],
            backend="x",
            methods={
                "residual-2": row
                | {"void": "recall at α=1 is 0" if seed in void else None, "sweep": [point]},
                "residual-4": row | {"void": None, "sweep": [point]},
            },
        )
        for seed in (0, 1)
    ]
    told = line(found, "", LINE["README.md"])
    assert f"{said}, 1.0 / 2.0; 4 bits 2/8, 1.0" in told
    assert told.endswith("to 0% at 2 bits, 0% at 4 bits." + LINE["README.md"]["nothing"])
    assert "VOID" in line(found, "", LINE["README.zh-CN.md"])


def test_the_line_on_speed_leaves_void_runs_out() -> None:
    def record(verdict: str) -> records.Record:
        figures = {"speedup_alpha0_batch1": 2.994, "alpha1_over_alpha0_batch1": 1.0936}
        config = {"parameters": 1235814400, "density": 0.01}
        return records.new(
            "performance", verdict, n=4, seeds=[0], backend="x", config=config, figures=figures
        )

    words = SPEED["README.md"]
    told = speed_line({Path("a.json"): record("PASS"), Path("b.json"): record("VOID")}, words)
    assert "1B parameters on" in told
    assert "2.99x bf16 at α=0" in told
    assert told.endswith("takes 1.09x as long as α=0 ([record](a.json)).")
    assert "b.json" not in told
    assert speed_line({Path("b.json"): record("VOID")}, words) == ""


def test_a_run_beside_sums_is_not_told_as_one_without() -> None:
    assert "of 200 problems" in clause(records.read(ROOT / SOURCE), SUMS["README.md"])
    other = records.new("alpha-sweep", "PASS", n=50, seeds=[0], backend="x")
    with pytest.raises(FormatError, match="the last whose replay text shows no sums"):
        clause(other, SUMS["README.md"])


def test_the_line_on_repair_leaves_out_what_lost_nothing() -> None:
    found = [{"density": 0.01, "recovered": 0.683, "recovered_interval": [0.548, 0.824]}]
    rows = {"absmax3": {"void": False, "repaired": found}, "gptq4": {"void": True, "repaired": []}}
    record = records.new("genius", "FAIL", n=2000, seeds=[0], backend="x", methods=rows)
    told = genius_line(record, "[seed 0](x)", GENIUS["README.md"])
    assert "(`genius`: FAIL, 2,000 problems, 95% intervals, [seed 0](x))" in told
    assert told.endswith(": 68% (55% to 82%) at `absmax3`.")
    void = records.new(
        "genius", "VOID", n=2000, seeds=[0], backend="x", methods={"a": rows["gptq4"]}
    )
    assert genius_line(void, "", GENIUS["README.md"]) == ""
