"""A folder belongs to the plan that it was begun with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from libortho.errors import ConfigError
from libortho.experiments.claim import claim

PLAN = {"members": 4, "training": {"steps": 30, "lr": 1e-3}, "bits": [2, 3]}


def test_the_same_plan_goes_on(tmp_path: Path) -> None:
    claim(tmp_path / "new", "stages", PLAN)
    written = (tmp_path / "new" / "stages.plan.json").read_text("utf-8")
    assert json.loads(written)["plan"] == PLAN
    claim(tmp_path / "new", "stages", {"bits": (2, 3), **{k: PLAN[k] for k in list(PLAN)[:2]}})
    assert (tmp_path / "new" / "stages.plan.json").read_text("utf-8") == written


def test_another_plan_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    claim(tmp_path, "stages", PLAN)
    other = {"members": 5, "training": {"steps": 31, "lr": 1e-3}, "rho": 0.9}
    with pytest.raises(ConfigError) as refused:
        claim(tmp_path, "stages", other)
    assert str(refused.value) == (
        f"{tmp_path / 'stages.plan.json'} is of another plan: bits is [2, 3] there and nothing "
        "here; members is 4 there and 5 here; rho is nothing there and 0.9 here; training.steps "
        "is 30 there and 31 here. Ask for the same, or choose another folder with -o"
    )
    claim(tmp_path, "stages", PLAN)


def test_stages_of_an_unknown_plan_are_refused(tmp_path: Path) -> None:
    (tmp_path / "forget.json").write_text("{}", "utf-8")
    claim(tmp_path, "others", PLAN, leaves=["mask.json"])
    with pytest.raises(ConfigError, match=r"holds forget.json of a plan that nobody wrote down"):
        claim(tmp_path, "stages", PLAN, leaves=["mask.json", "forget.json"])
    assert not (tmp_path / "stages.plan.json").exists()
