"""One process at a time is at a thing, and a lock never outlives its process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from libortho.experiments.turns import turn

HOLD = """
import sys, time
from pathlib import Path
from libortho.experiments.turns import turn
with turn(Path(sys.argv[1]), "row") as ours:
    print(ours, flush=True)
    time.sleep(60)
"""
WITHOUT_FCNTL = """
import sys
from pathlib import Path
sys.modules["fcntl"] = None
import libortho
from libortho.experiments import catalogue
from libortho.experiments.turns import turn
with turn(Path(sys.argv[1]), "row") as ours, turn(Path(sys.argv[1]), "row", wait=False) as theirs:
    print(ours, theirs)
"""


def test_who_comes_second_waits_or_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with turn(folder, "row") as ours:
        assert ours
        with turn(folder, "row", wait=False) as theirs:
            assert not theirs
        with turn(folder, "other", wait=False) as free:
            assert free
    with turn(folder, "row", wait=False) as ours:
        assert ours


def test_a_process_that_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with turn(tmp_path, "row", wait=False) as ours:
            assert not ours
        other.send_signal(signal.SIGKILL)
        other.wait()
    with turn(tmp_path, "row", wait=False) as ours:
        assert ours


def test_experiments_do_without_locks_of_posix(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout == "True False\n"
