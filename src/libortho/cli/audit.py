"""``audit``: what any checkpoint still knows of private data, at given alphas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from libortho.audit import REDUCED, REDUCED_ROWS, audit
from libortho.audit.parts import SUFFIX
from libortho.cli.console import emit, shown, stderr
from libortho.cli.experiments import STATUS
from libortho.cli.options import Device, Json, Plan
from libortho.errors import ConfigError
from libortho.evaluate.inputs import as_dtype
from libortho.privacy.attacks import ATTACKS
from libortho.privacy.attacks.subject import Budget
from libortho.records import Record

FOLDER = Path("records/audit")
_FILE = {"exists": True, "dir_okay": False}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("audit")(audit_verb)


def audit_verb(
    model: Annotated[
        str, typer.Argument(help="A directory written by libortho, or any checkpoint.")
    ],
    data: Annotated[Path, typer.Option(**_FILE, help="JSONL the model was trained on.")],
    controls: Annotated[
        Path | None,
        typer.Option(**_FILE, help="JSONL of the same kind it never saw; drawn for canaries."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="A checkpoint that never saw the data.")
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(help="A checkpoint that recites the data, if MODEL has no private stream."),
    ] = None,
    shadows: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Shadow runs, for `--attack lira`."),
    ] = None,
    ortho_alpha: Annotated[
        list[str] | None,
        typer.Option(help="A state of the gate: 0, 1, private=1,repair=1; repeatable [0 and 1]."),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this one; repeatable. One of {', '.join(ATTACKS)}."),
    ] = None,
    reduced: Annotated[
        bool,
        typer.Option(
            "--reduced",
            help=f"{REDUCED_ROWS} rows of each file and fewer trials: under 30 minutes.",
        ),
    ] = False,
    members: Annotated[
        int | None, typer.Option(min=1, help="Take so many rows of each file.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=0, help="Random secrets per exposure; 0: ranks alone.")
    ] = None,
    sampled: Annotated[
        int | None, typer.Option(min=2, help="Rows of each half whose exposure is sampled.")
    ] = None,
    beams: Annotated[
        int | None, typer.Option(min=1, help="Rows of each half that beam search tries.")
    ] = None,
    relearn_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of relearning, at most.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="The record to write, never over one; by default records/audit/MODEL-DATE.json.",
        ),
    ] = None,
    seed: int = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    plan: Plan = False,
    json: Json = False,
) -> None:
    """Attack a model for private data in every state, and judge those that should be silent."""
    given = {
        "candidates": candidates,
        "sampled": sampled,
        "beams": beams,
        "relearn_steps": relearn_steps,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    start = REDUCED if reduced else Budget()
    budget = Budget(**{**vars(start), **chosen})
    limit = members or (REDUCED_ROWS if reduced else None)
    if plan:
        emit(*_plan(attack, ortho_alpha, limit, budget, json))
        return
    file = out or _dated(model)
    with _kept(file), shown() as progress:
        record = audit(
            model,
            data,
            controls=controls,
            reference=reference,
            positive=positive,
            shadows=shadows,
            alphas=ortho_alpha,
            attacks=attack,
            limit=limit,
            budget=budget,
            out=file,
            seed=seed,
            device=device,
            dtype=as_dtype(dtype),
            progress=progress,
        )
    stderr.print(_table(record))
    emit(
        record.summary() | {"record": str(file)},
        json,
        f"{record.verdict}: {record.reason}\nrecord {file}; the page: libortho report {file}",
    )
    raise typer.Exit(STATUS[record.verdict])


def _dated(model: str) -> Path:
    """A name that no earlier audit has."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    return FOLDER / f"{Path(model).resolve().name}-{now}.json"


@contextmanager
def _kept(file: Path) -> Iterator[None]:
    """Say, where an audit ends early, that what it has found so far is not lost."""
    try:
        yield
    except BaseException:
        if any(file.parent.glob(f"*{SUFFIX}")):
            stderr.print(
                f"the attacks that were done are kept in {file.parent}/*{SUFFIX}; "
                "the same command goes on from there",
                highlight=False,
            )
        raise


def _plan(
    attack: list[str] | None,
    alphas: list[str] | None,
    limit: int | None,
    budget: Budget,
    json: bool,
) -> tuple[dict[str, object], bool, str]:
    unknown = sorted(set(attack or ()) - ATTACKS.keys())
    if unknown:
        raise ConfigError(f"unknown attack(s): {', '.join(unknown)}; known: {', '.join(ATTACKS)}")
    names = [name for name in ATTACKS if attack is None or name in attack]
    result: dict[str, object] = {
        "attacks": names,
        "alphas": alphas or ["0", "1"],
        "rows": limit,
        "budget": vars(budget),
    }
    lines = [f"  {name}: {ATTACKS[name].explains}" for name in names]
    return result, json, "\n".join([f"{limit or 'all'} rows of each file, {budget}", *lines])


def _table(record: Record) -> Table:
    table = Table(title=f"audit, n = {record.n}: {record.verdict}")
    table.add_column("attack")
    table.add_column("figure")
    for state in record.methods:
        table.add_column(state, justify="right")
    for name, attack in ATTACKS.items():
        title = attack.title
        for key in attack.shown:
            cells = [_cell(method.figures, name, key) for method in record.methods.values()]
            if any(cells):
                table.add_row(title, key, *cells)
                title = ""
    return table


def _cell(figures: Any, attack: str, key: str) -> str:
    found = figures["attacks"].get(attack, {}).get(key)
    if found is None:
        return ""
    interval = f"[{found['low']:.3g}, {found['high']:.3g}]"
    value = f"{found['count']}/{found['n']}" if "count" in found else f"{found['value']:.3g}"
    return f"{value} {interval}"
