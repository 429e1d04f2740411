"""A folder belongs to the plan that it was begun with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from libortho.errors import ConfigError
from libortho.experiments.claim import claim

AT_ONCE = """
import sys, time
from pathlib import Path
from libortho.experiments import claim as module
write = module.write_atomic
module.write_atomic = lambda *given: (time.sleep(1), write(*given))  # a window to come through
folder, mine = Path(sys.argv[1]), int(sys.argv[2])
(folder / f"ready-{mine}").touch()
while len(list(folder.glob("ready-*"))) < 3:
    time.sleep(0.01)
module.claim(folder, "stages", {"members": mine})
"""
PLAN = {"members": 4, "training": {"steps": 30, "lr": 1e-3}, "bits": [2, 3]}


def test_the_same_plan_goes_on(tmp_path: Path) -> None:
    claim(tmp_path / "new", "stages", PLAN)
    written = (tmp_path / "new" / "stages.plan.json").read_text("utf-8")
    assert json.loads(written)["plan"] == PLAN
    claim(tmp_path / "new", "stages", {"bits": (2, 3), **{k: PLAN[k] for k in list(PLAN)[:2]}})
    assert (tmp_path / "new" / "stages.plan.json").read_text("utf-8") == written


def test_a_folder_that_has_a_plan_is_only_read(tmp_path: Path) -> None:
    claim(tmp_path, "stages", PLAN)
    for lock in tmp_path.glob(".*.lock"):
        lock.unlink()
    tmp_path.chmod(0o555)  # does not keep root out, whom a new file gives away
    try:
        claim(tmp_path, "stages", PLAN)
        with pytest.raises(ConfigError, match="of another plan"):
            claim(tmp_path, "stages", {**PLAN, "members": 5})
        assert [file.name for file in tmp_path.iterdir()] == ["stages.plan.json"]
    finally:
        tmp_path.chmod(0o755)


def test_of_several_processes_at_once_one_has_the_folder(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", AT_ONCE, str(tmp_path), str(mine)] for mine in range(3)]
    running = [subprocess.Popen(one, stderr=subprocess.PIPE, text=True) for one in commands]
    said = [one.communicate(timeout=120)[1] for one in running]
    (first,) = [mine for mine, one in enumerate(running) if one.returncode == 0]
    written = json.loads((tmp_path / "stages.plan.json").read_text("utf-8"))
    assert written["plan"] == {"members": first}
    for mine, told in enumerate(said):
        assert mine == first or f"members is {first} there and {mine} here" in told


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
