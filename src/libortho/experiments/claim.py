"""A folder belongs to one plan: what another plan left there is never gone on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from libortho.errors import ConfigError
from libortho.experiments.turns import turn
from libortho.records import write_atomic

_SUFFIX = ".plan.json"


def claim(
    folder: Path, name: str, asked: Mapping[str, JsonValue], *, leaves: Sequence[str] = ()
) -> None:
    """Write down what a folder is for, or hold what is written there against what is asked.

    Args:
        folder: made where it is absent; gets ``NAME.plan.json`` with the plan and its sha256.
            Where that is there already, the folder is only read.
        name: of the stages that share the plan.
        asked: everything that their results depend on, as JSON.
        leaves: files and folders that they leave. Standing there without a plan, nobody knows of
            which plan they are.

    Raises:
        ConfigError: the folder is another plan's; all that differs is told.
    """
    file = folder / f"{name}{_SUFFIX}"
    if not file.is_file():
        # Of several processes that come at once, the first writes, and all read what it wrote.
        with turn(folder, file.name):
            if not file.is_file():
                _write(file, asked, leaves)
    _hold(file, asked)


def _hold(file: Path, asked: Mapping[str, JsonValue]) -> None:
    differing = _differences(json.loads(file.read_text("utf-8"))["plan"], asked)
    if differing:
        raise ConfigError(
            f"{file} is of another plan: {'; '.join(differing)}. Ask for the same, or choose "
            "another folder with -o"
        )


def _write(file: Path, asked: Mapping[str, JsonValue], leaves: Sequence[str]) -> None:
    folder = file.parent
    unknown = [leaf for leaf in leaves if (folder / leaf).exists()]
    if unknown:
        raise ConfigError(
            f"{folder} holds {', '.join(unknown)} of a plan that nobody wrote down (expected "
            f"{file.name} beside them). Delete them, or choose another folder with -o"
        )
    canonical = json.dumps(asked, sort_keys=True)
    told = {"sha256": hashlib.sha256(canonical.encode()).hexdigest(), "plan": dict(asked)}
    write_atomic(file, json.dumps(told, indent=1, sort_keys=True) + "\n")


def _differences(there: JsonValue, asked: Mapping[str, JsonValue]) -> list[str]:
    found, wanted = dict(_leaves(there)), dict(_leaves(json.loads(json.dumps(asked))))
    nothing = "nothing"
    return [
        f"{key} is {found.get(key, nothing)} there and {wanted.get(key, nothing)} here"
        for key in sorted({*found, *wanted})
        if found.get(key, nothing) != wanted.get(key, nothing)
    ]


def _leaves(value: JsonValue, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from _leaves(one, f"{key}.{name}" if key else name)
    else:
        yield key, json.dumps(value)
