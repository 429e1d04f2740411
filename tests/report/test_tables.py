"""The tables and plots of genius, alpha-sweep and dp: what is shown is what the record says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from libortho import records, report
from libortho.experiments.verdict import as_json, at_least
from libortho.records import Record


def answered(value: float) -> dict[str, Any]:
    around = [value - 0.02, value + 0.02]
    ratio = {"ppl_ratio": 1.3 - value / 4, "ppl_ratio_interval": [1.0, 1.3]}
    return {"accuracy": value, "accuracy_interval": around, **ratio}


def genius() -> dict[str, Any]:
    repaired = [
        {
            **answered(0.8 + 10 * density / 9),
            "density": density,
            "p": 1e-5,
            "recovered": 0.637 + density,
            "recovered_interval": [0.5, 0.7],
        }
        for density in (0.01, 0.02)
    ]
    return {
        "absmax3": {"void": False, "repaired": repaired, **answered(0.62)},
        "gptq3": {"void": True, "repaired": [], **answered(0.91)},
    }


def sweep() -> dict[str, Any]:
    points = [
        {
            "alpha": alpha,
            "recall": alpha**8,
            "recall_interval": [max(0.0, alpha**8 - 0.1), min(1.0, alpha**8 + 0.1)],
            "nll": 71.5 - 71 * alpha,
            "nll_controls": 80.0,
            "auc": 0.5 + alpha / 2,
            "exposure": 1.44 + 6 * alpha,
            "ppl": 22 + alpha,
            "arithmetic": 0.9,
            "arithmetic_interval": [0.87, 0.93],
        }
        for alpha in (0.0, 0.5, 1.0)
    ]
    return {"tune": {"guarantee": "exact", "sweep": points}}


def dp() -> dict[str, Any]:
    seen = {"recall": 0.0, "auc": 0.51, "nll": 70.1, "nll_controls": 71.2, "ppl": 22.2}
    return {
        "no-noise": {**seen, "epsilon": None, "epsilon_lower": 3.321, "auc": 1.0},
        "eps-1": {**seen, "epsilon": 0.987, "epsilon_lower": 0.0},
        "weight-noise": {"ablation": [{"sigma": sigma, **seen} for sigma in (0.0, 1.0)]},
    }


def separation() -> dict[str, Any]:
    closed = {"nll": 61.4, "nll_alpha0_controls": 66.6, "exposure": 2.1, "auc": 0.561, "ppl": 22.0}
    closed |= {"recall": 0.0, "extracted": 0, "arithmetic": 0.77, "relearn_half": 17.0}
    closed["recall_by_exposure"] = {"16": [0, 9], "64": [0, 11]}
    keys = {key if "alpha0" in key else f"{key}_alpha0": one for key, one in closed.items()}
    opened = {"extracted_alpha1": 20, "ppl_alpha1": 21.9, "arithmetic_alpha1": 0.86}
    forget = {"guarantee": "measured", "members": 20, "ppl_fp": 21.8, "density": 0.027}
    forget |= keys | opened | {"void": None}
    point = {"recall": 0.85, "nll": 3.2, "nll_controls": 66.0, "exposure": 4.9, "ppl": 22.1}
    sweep = [{**point, "density": 0.0}, {**point, "density": 0.05, "ppl": 21.91}]
    return {
        "tune": {**forget, "guarantee": "exact"},
        "residual-2": {**forget, "void": "it lost its power", "sweep": sweep},
        "forget": forget,
    }


MADE = {"genius": genius, "alpha-sweep": sweep, "dp": dp, "separation": separation}


def made(name: str, verdict: Any = "PASS") -> Record:
    figures: dict[str, Any] = {"accuracy_fp": 0.93, "controls": 200, "delta": 0.005}
    figures |= {
        "recited": 20,
        "members": 30,
        "recited_by_exposure": {"16": [9, 15], "64": [11, 15]},
    }
    figures["gates"] = [
        {"name": "forget: arithmetic", "held": False, "found": "not measured: x", "limit": "≥ 0.85"}
    ]
    checks = as_json([at_least("a rule", 1.0, 0.5, "FAIL")])
    return records.new(
        name,
        verdict,
        n=200,
        seeds=[0],
        backend="native avx2",
        reason="it was so.",
        figures={**figures, "checks": checks},
        methods=MADE[name](),
    )


def page(tmp_path: Path, name: str, verdict: Any = "PASS") -> str:
    record = made(name, verdict)
    records.write(record, tmp_path / "records" / f"{name}.json")
    return report.render([record], tmp_path / "report.html").read_text("utf-8")


SHOWN = {
    "genius": ("62.0%", "0.65", "[0.50, 0.70]", "1e-05", "brings back 65% of the arithmetic"),
    "alpha-sweep": ("36.0 | 80.0", "4.44", "22.500", "up to α\u00a0=\u00a00"),
    "dp": ("0.987", "3.321", "no noise, no privacy", "which is not differential privacy"),
    "separation": (
        "nothing is recited by tune; 0 of the other rows",
        "residual-2 (VOID)",
        "61.4 | 66.6",
        "1.009",
        "residual-2, 5%",
        "21.910",
        "0/11",
        "not measured: x",
        "missed",
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_figures_stand_in_the_page_and_link_to_their_record(tmp_path: Path, name: str) -> None:
    html = page(tmp_path, name)
    for text in SHOWN[name]:
        assert text in html, text
    links = re.findall(r'<a class="figure" href="([^"]*)"', html)
    assert links
    assert set(links) == {f"records/{name}.json"}
    assert html.count("<svg") == 1


def test_a_void_base_shows_no_fraction(tmp_path: Path) -> None:
    (row,) = re.findall(r"<tr><th scope=\"row\">gptq3, .*?</tr>", page(tmp_path, "genius"))
    assert "VOID" in row


@pytest.mark.parametrize("name", MADE)
def test_a_void_run_claims_nothing(tmp_path: Path, name: str) -> None:
    html = page(tmp_path, name, "VOID")
    assert "This run shows nothing, neither way: it was so." in html
    assert "brings back 65%" not in html


def test_what_was_not_run_here_stands_with_its_command(tmp_path: Path) -> None:
    command = "pip install 'libortho[dp]' && libortho experiment dp --seed 0"
    record = records.new(
        "dp",
        "VOID",
        n=0,
        seeds=[0],
        backend="reference",
        reason="not run here: Opacus is not installed",
        not_run={"dp": command},
    )
    html = report.render([record], tmp_path / "report.html").read_text("utf-8")
    assert "not run here</span> dp: <code>pip install" in html
    assert "<svg" not in html
