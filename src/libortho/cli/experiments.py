"""``demo``, ``experiment`` and ``report``: records, verdicts and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import JsonValue
from rich.table import Table

from libortho import records, report
from libortho.checkpoint import REFERENCE
from libortho.cli.console import emit, shown, stderr
from libortho.cli.options import Device, Json, Plan, Texts, text, torch_device
from libortho.cli.performance import run_performance
from libortho.experiments.catalogue import EXPERIMENTS, Ask, workplace
from libortho.experiments.killswitch import demo
from libortho.experiments.series import run_all
from libortho.records import Record

STATUS = {"PASS": 0, "FAIL": 1, "VOID": 2}
Name = Literal[
    "killswitch",
    "utility",
    "alpha-sweep",
    "genius",
    "dp",
    "performance",
    "separation",
    "unlearning",
    "benchmarks",
    "all",
]

Members = Annotated[int | None, typer.Option(min=2, help="Canaries to memorise; as many controls.")]
Records = Annotated[Path, typer.Option("--records", help="Where records are written.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("demo")(demo_verb)
    app.command("experiment")(experiment_verb)
    app.command("report")(report_verb)


def demo_verb(
    model: Annotated[str, typer.Option(help="Public checkpoint.")] = REFERENCE,
    members: Members = None,
    seed: int = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="Working directory.")] = Path("out/demo"),
    texts: Texts = None,
    plan: Plan = False,
    json: Json = False,
) -> None:
    """Memorise real secrets, split the weights, and prove what α=0 can and cannot say."""
    if plan:
        emit(
            {"out": str(out), "members": members or 20, "minutes": "5 to 10 on 2 cores"},
            json,
            f"quantise {model}, memorise {members or 20} canaries by tune and by LoRA, split, "
            f"evaluate, write {out}/demo.json and {out}/report.html: 5 to 10 minutes on 2 cores",
        )
        return
    with shown() as progress:
        record = demo(
            model,
            out / "work",
            members=members or 20,
            seed=seed,
            text=text(texts),
            progress=progress,
        )
    records.write(record, out / "demo.json")
    report.render([record], out / "report.html")
    _conclude([record], json, f"record {out}/demo.json, page {out}/report.html")


def experiment_verb(
    name: Annotated[Name, typer.Argument(help="Which experiment.")],
    model: Annotated[str, typer.Option(help="Public checkpoint.")] = REFERENCE,
    members: Members = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeatable.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Working directory, resumable. Default: out/canaries, or out/canaries-small.",
        ),
    ] = None,
    where: Records = Path("records"),
    small: Annotated[
        bool,
        typer.Option("--small", help="The reduced plan for two CPU cores, where there is one."),
    ] = False,
    problems: Annotated[
        int | None,
        typer.Option(min=2, help="Arithmetic problems (genius, alpha-sweep, benchmarks)."),
    ] = None,
    bases: Annotated[
        list[str] | None, typer.Option("--base", help="Bases of genius, such as absmax3.")
    ] = None,
    densities: Annotated[
        list[float] | None, typer.Option("--density", help="Densities of repair (genius).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of TOFU's files (unlearning)."),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Tasks of lm-eval (benchmarks).")
    ] = None,
    texts: Texts = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Run an experiment, or all: one record per seed under records/, and a verdict."""
    if name == "performance":
        decoded = run_performance(where, (seeds or [0])[0], json, torch_device(device))
        raise typer.Exit(STATUS[decoded.verdict])
    made: list[Record] = []
    out = out or Path("out") / workplace(small)
    with shown() as progress:
        ask = Ask(
            model,
            out,
            members=members,
            problems=problems,
            bases=bases or (),
            densities=densities or (),
            small=small,
            data=data,
            tasks=tasks or (),
            text=text(texts),
            device=device,
            progress=progress,
        )
        if name == "all":
            made = run_all(ask, where, seeds=seeds)
            report.render(made, out / "report.html")
        else:
            for seed in seeds or EXPERIMENTS[name].seeds:
                made.append(EXPERIMENTS[name].record(ask, seed))
                records.write(made[-1], where / name / f"seed-{seed}.json")
    page = f", page {out}/report.html, log {out}/log.jsonl" if name == "all" else ""
    _conclude(made, json, f"records in {where}{'' if name == 'all' else f'/{name}'}{page}")


def report_verb(
    files: Annotated[list[Path] | None, typer.Argument(help="Records, or folders of them.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out")] = Path("report.html"),
    json: Json = False,
) -> None:
    """Turn records into one self-contained page."""
    found = [
        file
        for entry in files or [Path("records")]
        for file in (sorted(entry.rglob("*.json")) if entry.is_dir() else [entry])
    ]
    loaded = [records.read(file) for file in found]
    report.render(loaded, out)
    emit(
        {"report": str(out), "records": [str(file) for file in found]},
        json,
        f"{out}: {len(loaded)} records",
    )


def _conclude(made: Sequence[Record], json: bool, where: str) -> None:
    for table in map(_table, made):
        if table.row_count:
            stderr.print(table)
    if json:
        results = [record.summary() for record in made]
        emit(results[0] if len(results) == 1 else {"records": results}, True)
    else:
        for record in made:
            emit({}, False, f"{record.verdict}: {record.reason}")
        emit({}, False, where)
    raise typer.Exit(max(STATUS[record.verdict] for record in made))


def _table(record: Record) -> Table:
    table = Table(title=f"{record.experiment}, seed {record.seeds[0]}: {record.verdict}")
    head = ("way", "state", "recited", "secret NLL | controls", "exposure", "PPL", "× FP", "sums")
    for column in head:
        table.add_column(column, justify="left" if column in ("way", "state") else "right")
    for name, method in record.methods.items():
        values = method.figures
        for state in ("fp", "int4", "alpha0", "repair", "alpha1"):
            if not isinstance(values.get(f"ppl_{state}"), float):
                continue
            table.add_row(name, state, *_row(values, state))
            name = ""
        table.add_section()
    return table


def _row(values: Mapping[str, JsonValue], state: str) -> list[str]:
    def number(key: str) -> float:
        value = values.get(key)
        return float(value) if isinstance(value, int | float) else float("nan")

    secrets = f"nll_{state}" in values
    return [
        f"{number(f'extracted_{state}'):.0f}/{number('members'):.0f}" if secrets else "",
        f"{number(f'nll_{state}'):.1f} | {number(f'nll_{state}_controls'):.1f}" if secrets else "",
        f"{number(f'exposure_{state}'):.2f}" if secrets else "",
        f"{number(f'ppl_{state}'):.3f}",
        f"{number(f'ppl_{state}') / number('ppl_fp'):.4f}",
        f"{number(f'arithmetic_{state}'):.1%}" if f"arithmetic_{state}" in values else "",
    ]
