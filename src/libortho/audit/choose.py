"""Which attacks an audit runs, and what stands in the way of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from libortho.audit.data import Data
from libortho.audit.target import Target
from libortho.errors import ConfigError
from libortho.privacy.attacks import ATTACKS
from libortho.privacy.attacks.beam import not_applicable


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Which attacks are run, and why others are not.

    Attributes:
        attacks: in the order of the registry.
        not_run: by attack, the command that would run it, or what it lacks.
    """

    attacks: tuple[str, ...]
    not_run: dict[str, str]


def choose(
    asked: Sequence[str] | None,
    target: Target,
    data: Data,
    *,
    data_file: str | Path,
    reference: str | Path | None,
    shadows: str | Path | None,
) -> Chosen:
    """Take the attacks asked for, or all that can be run; what is lacking is told.

    Raises:
        ConfigError: an attack is unknown; or it was asked for, and what it needs was not given;
            or there is no reference, which is asked for unless attacks are chosen without it.
            All of them are listed.
    """
    unknown = sorted(set(asked or ()) - ATTACKS.keys())
    if unknown:
        raise ConfigError(f"unknown attack(s): {', '.join(unknown)}; known: {', '.join(ATTACKS)}")
    lacking: dict[str, str] = {}
    if data.kind is None:
        lacking["canaries"] = (
            "not applicable: associate prompts can only be made of libortho's own canaries "
            "(libortho canaries 200 -o DIR)"
        )
    if why := not_applicable(data.kind):
        lacking["alphabet"] = why
    if shadows is None:
        lacking["shadows"] = (
            "LiRA needs shadow runs, given by --shadows DIR: "
            f"libortho shadows --data {data_file} -o DIR"
        )
    if reference is None and not stands_for_itself(target):
        lacking["reference"] = (
            "the reference attack needs a checkpoint that never saw the data, given by "
            "--reference: the public checkpoint that private training began with, or its base by\n"
            "    libortho quantize PUBLIC -o REFERENCE\n"
            "To go without, name the other attacks, each with --attack"
        )
    names = [name for name in ATTACKS if asked is None or name in asked]
    missing = {
        name: lacking[need]
        for name in names
        if (need := ATTACKS[name].needs) is not None and need in lacking
    }
    fatal = [
        f"{name}: {why}"
        for name, why in missing.items()
        if asked is not None or ATTACKS[name].needs == "reference"
    ]
    if fatal:
        raise ConfigError("\n".join(fatal))
    return Chosen(tuple(name for name in names if name not in missing), missing)


def stands_for_itself(target: Target) -> bool:
    """Whether the target's own base is a model that never saw the data: all streams exact."""
    return bool(target.guarantees) and set(target.guarantees.values()) == {"exact"}
