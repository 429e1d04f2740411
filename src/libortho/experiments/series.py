"""Every experiment in turn, into one log; a run that was cut off goes on where it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from libortho import records
from libortho.errors import ConfigError, LibOrthoError
from libortho.experiments.catalogue import EXPERIMENTS, Ask, Experiment, workplace
from libortho.experiments.states import backend_name
from libortho.records import Record

LOG = "log.jsonl"


def run_all(
    ask: Ask,
    where: Path,
    *,
    seeds: Sequence[int] | None = None,
    experiments: Mapping[str, Experiment] = EXPERIMENTS,
) -> list[Record]:
    """Run experiments, each with the part of ``ask`` that it takes; write their records.

    ``ask.folder/log.jsonl`` gets one line an experiment and seed. What stands there with the same
    question and an unaltered record is not run again. An experiment that lacks a package is
    recorded as not run here, with the command that mends it, unless a record of it exists.

    Args:
        where: gets ``NAME/seed-N.json``.
        seeds: of all experiments; each has its own where None.

    Returns:
        All records, of this run and of the one it went on from.

    Raises:
        LibOrthoError: experiments that failed, all of them, after the others were run.
    """
    log = ask.folder / LOG
    done = _read(log)
    made: list[Record] = []
    failed: list[str] = []
    for name, experiment in experiments.items():
        for seed in seeds or experiment.seeds:
            path = where / name / f"seed-{seed}.json"
            asked = _asked(ask, experiment)
            line = {"experiment": name, "seed": seed, "asked": _told(asked), "record": str(path)}
            if _stands(done, line):
                made.append(records.read(path))
                continue
            begin = time.monotonic()
            try:
                record = _made(name, experiment, asked, seed, path)
            except LibOrthoError as error:
                failed.append(f"{name}, seed {seed}: {error}")
                _append(log, {**line, "error": str(error)})
                continue
            if record.source is None:
                records.write(record, path)
            seconds = round(time.monotonic() - begin, 1)
            verdict = {"verdict": record.verdict, "sha256": record.sha256(), "seconds": seconds}
            # What lacked a package is asked again: the package may be there next time.
            _append(log, {**line, **verdict, "done": not record.not_run})
            made.append(record)
    if failed:
        raise LibOrthoError(
            f"{len(failed)} experiments failed, {len(made)} have records in {where}:\n  "
            + "\n  ".join(failed)
        )
    return made


def _made(name: str, experiment: Experiment, ask: Ask, seed: int, path: Path) -> Record:
    try:
        experiment.missing()
    except ConfigError as error:
        if path.is_file():
            return records.read(path)
        command = f"{experiment.install} && libortho experiment {name} --seed {seed}"
        return records.new(
            name,
            "VOID",
            n=0,
            seeds=[seed],
            backend=backend_name(),
            reason=f"not run here: {error}",
            not_run={name: command},
        )
    return experiment.record(ask, seed)


def _asked(ask: Ask, experiment: Experiment) -> Ask:
    """The part of the question that an experiment takes, in a folder of its plan."""
    takes = experiment.takes
    small = ask.small and "small" in takes
    return replace(
        ask,
        folder=ask.folder / "work" / workplace(small),
        members=ask.members if "members" in takes else None,
        problems=ask.problems if "problems" in takes else None,
        bases=ask.bases if "base" in takes else (),
        densities=ask.densities if "density" in takes else (),
        small=small,
        data=ask.data if "data" in takes else None,
        tasks=ask.tasks if "task" in takes else (),
        device=ask.device if "device" in takes else "cpu",
    )


def _told(ask: Ask) -> dict[str, Any]:
    return {
        "model": str(ask.model),
        "members": ask.members,
        "problems": ask.problems,
        "bases": list(ask.bases),
        "densities": list(ask.densities),
        "small": ask.small,
        "data": str(ask.data) if ask.data else None,
        "tasks": list(ask.tasks),
        "text": ask.text.sha256 if ask.text else None,
    }


def _stands(done: Sequence[Mapping[str, Any]], line: Mapping[str, Any]) -> bool:
    path = Path(line["record"])
    if not path.is_file():
        return False
    sha256 = records.read(path).sha256()
    return any(
        entry.get("done")
        and entry.get("sha256") == sha256
        and all(entry.get(key) == value for key, value in line.items())
        for entry in done
    )


def _read(log: Path) -> list[dict[str, Any]]:
    if not log.is_file():
        return []
    found = []
    for text in log.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            # A run that was cut off while writing leaves half a line, which tells nothing.
            continue
    return found


def _append(log: Path, line: Mapping[str, Any]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = log.is_file() and not log.read_bytes().endswith(b"\n")
    with log.open("a", encoding="utf-8") as file:
        file.write(("\n" if begun else "") + json.dumps(line) + "\n")
