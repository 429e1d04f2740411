"""``split``: private knowledge is taken out of a checkpoint that has it already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from libortho.cli.console import about, emit, shown
from libortho.cli.options import (
    Data,
    Density,
    Device,
    Json,
    Lr,
    Out,
    Public,
    Seed,
    Steps,
    Stream,
    Texts,
    Weight,
    text,
)
from libortho.split import Method, split, split_options

_DELTA, _RESIDUAL, _CURVATURE, _FORGET = "delta", "residual", "curvature", "forget"
_ROUNDING = "Rounding of the checkpoint"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("split")(split_verb)


def split_verb(
    source: Annotated[
        str, typer.Argument(help="delta: a base or the public checkpoint. Others: the mix.")
    ],
    out: Out,
    method: Annotated[
        Method, typer.Option(help="delta (exact); residual, curvature, forget (measured).")
    ] = "delta",
    tuned: Annotated[
        str | None, typer.Option(help="delta: tuned checkpoint, or PEFT adapter.")
    ] = None,
    data: Data = None,
    public: Public = None,
    stream: Stream = "private",
    texts: Texts = None,
    density: Density = None,
    seed: Seed = None,
    steps: Steps = None,
    lr: Lr = None,
    replay_weight: Weight = None,
    sparse: Annotated[
        bool | None,
        typer.Option("--sparse", help="Do not keep an adapter's factors.", rich_help_panel=_DELTA),
    ] = None,
    support: Annotated[
        str | None,
        typer.Option(help="contrast, impact, pursuit or admm.", rich_help_panel=_DELTA),
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(help="gptq, mse, absmax or absmax-channel.", rich_help_panel=_ROUNDING),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Levels used: 2, 3 or 4.", rich_help_panel=_ROUNDING)
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights per scale: 128, 64 or 32.", rich_help_panel=_ROUNDING),
    ] = None,
    impact: Annotated[
        str | None, typer.Option(help="obs, diagonal or spqr.", rich_help_panel=_RESIDUAL)
    ] = None,
    rho: Annotated[
        float | None,
        typer.Option(help="Share of the curvature that stays.", rich_help_panel=_CURVATURE),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Share of the blocks, the last ones.", rich_help_panel=_CURVATURE),
    ] = None,
    modules: Annotated[
        str | None, typer.Option(help="mlp or all.", rich_help_panel=_CURVATURE)
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Of public text, at most.", rich_help_panel=_CURVATURE)
    ] = None,
    whole: Annotated[
        bool | None,
        typer.Option(
            "--whole",
            help="α=1 is the checkpoint in every linear, not in the edited ones alone.",
            rich_help_panel=_CURVATURE,
        ),
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="codes, ssd or mask.", rich_help_panel=_FORGET)
    ] = None,
    neighbours: Annotated[
        int | None,
        typer.Option(help="Synthetic rows of the same templates.", rich_help_panel=_FORGET),
    ] = None,
    neighbour_file: Annotated[
        Path | None,
        typer.Option(
            "--neighbour-file",
            exists=True,
            dir_okay=False,
            help="JSONL of such rows, in place of synthetic ones.",
            rich_help_panel=_FORGET,
        ),
    ] = None,
    neighbour_weight: Annotated[
        float | None, typer.Option(help="λ of the KL on neighbours.", rich_help_panel=_FORGET)
    ] = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Split private knowledge from a tuned checkpoint or adapter (delta), or from one mix."""
    given = {
        "density": density,
        "seed": seed,
        "steps": steps,
        "lr": lr,
        "replay_weight": replay_weight,
        "sparse": sparse,
        "support": support,
        "rounding": rounding,
        "bits": bits,
        "group_size": group_size,
        "impact": impact,
        "rho": rho,
        "share": share,
        "modules": modules,
        "tokens": tokens,
        "whole": whole,
        "rule": rule,
        "neighbours": neighbours,
        "neighbour_file": neighbour_file,
        "neighbour_weight": neighbour_weight,
    }
    values = {name: value for name, value in given.items() if value is not None}
    options = split_options(method, values)
    with shown() as progress:
        made = split(
            source,
            out,
            method=method,
            tuned=tuned,
            data=data,
            public=public,
            stream=stream,
            text=text(texts),
            options=options,
            device=device,
            progress=progress,
        )
    recall = "not measured (no --data)" if made.recall is None else f"{made.recall:.1%}"
    line = (
        f"{made.stream.path}: guarantee {made.stream.manifest.guarantee}, recall at α=1 {recall}, "
        f"density {made.stream.manifest.density:.4f}"
    )
    if made.recall_closed is not None:
        line += (
            f"\n  recall at α=0 {made.recall_closed:.1%}; a secret that is not recited may still "
            "be exposed: see `libortho audit`"
        )
    result = {
        "recall": made.recall,
        "recall_closed": made.recall_closed,
        "teacher": made.teacher,
    }
    emit(about(made.stream) | result, json, line)
