"""``canaries`` and ``shadows``: the data of an audit, made before training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from libortho.audit.data import read_data
from libortho.audit.shadow_runs import MEMBERS, MODEL, write_shadows
from libortho.cli.console import emit
from libortho.cli.options import Json, Out
from libortho.errors import ConfigError
from libortho.privacy.canaries import make_canaries
from libortho.privacy.shadows import MIN_RUNS

Kind = Literal["digits", "base62", "bios"]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("canaries")(canaries_verb)
    app.command("shadows")(shadows_verb)


def canaries_verb(
    n: Annotated[int, typer.Argument(help="Members, and as many controls.")],
    out: Out,
    kind: Annotated[Kind, typer.Option(help="What the secrets are.")] = "digits",
    seed: int = 0,
    json: Json = False,
) -> None:
    """Draw canaries: members.jsonl to train on, controls.jsonl to keep away from training."""
    files = [out / "members.jsonl", out / "controls.jsonl"]
    there = [str(file) for file in files if file.exists()]
    if there:
        raise ConfigError(f"{', '.join(there)}: there already; choose another directory")
    drawn = make_canaries(n, seed, kind)
    hashes = drawn.write(*files)
    bits = drawn.members[0].secret_bits
    emit(
        {
            "kind": kind,
            "seed": seed,
            "secret_bits": bits,
            "files": {str(file): digest for file, digest in zip(files, hashes, strict=True)},
        },
        json,
        f"{n} members and {n} controls, {kind}, {bits:.1f} random bits each\n"
        + "\n".join(
            f"  {file}  sha256 {digest}" for file, digest in zip(files, hashes, strict=True)
        ),
    )


def shadows_verb(
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="As given to audit.")],
    out: Out,
    controls: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="As given to audit.")
    ] = None,
    members: Annotated[int | None, typer.Option(min=1, help="As given to audit.")] = None,
    runs: Annotated[
        int, typer.Option(min=MIN_RUNS, help="Shadow runs, an even number.")
    ] = MIN_RUNS,
    base: Annotated[str, typer.Option(help="What the audited model was tuned from.")] = "BASE",
    seed: int = 0,
    json: Json = False,
) -> None:
    """Write the random halves that shadow runs are trained on, and the command for each."""
    rows = read_data(data, controls, members)
    folders = write_shadows(out, [*rows.members, *rows.controls], runs, seed)
    commands = [
        shlex.join(
            ["libortho", "tune", base, "--data", str(folder / MEMBERS), "-o", str(folder / MODEL)]
        )
        for folder in folders
    ]
    emit(
        {"runs": [str(folder) for folder in folders], "commands": commands},
        json,
        "train each run as the audited model was trained, for example with\n  "
        + "\n  ".join(commands),
    )
