"""``quantize``: a public checkpoint becomes a base; nothing private is ever named here."""

from __future__ import annotations

from typing import Annotated

import typer

from libortho.checkpoint import Checkpoint, linear_layers
from libortho.cli.console import emit, shown
from libortho.cli.options import Json, Out, Plan, Texts, text
from libortho.quantize import quantize
from libortho.repair import RepairOptions, repair
from libortho.streams.manifest import Method


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("quantize")(quantize_verb)


def quantize_verb(
    public: Annotated[str, typer.Argument(help="Checkpoint directory, or the word `reference`.")],
    out: Out,
    method: Annotated[Method, typer.Option(help="Rounding rule.")] = "gptq",
    bits: Annotated[int, typer.Option(min=2, max=4, help="Levels used in the INT4 files.")] = 4,
    group_size: Annotated[int, typer.Option(help="Weights per scale: 128, 64 or 32.")] = 128,
    windows: Annotated[int, typer.Option(min=1, help="Windows of calibration text.")] = 32,
    skip: Annotated[
        list[str] | None, typer.Option(help="Linear to leave alone; repeatable.")
    ] = None,
    repair_density: Annotated[
        float, typer.Option("--repair", min=0, max=1, help="Density of a public `repair` stream.")
    ] = 0.0,
    seed: int = 0,
    texts: Texts = None,
    plan: Plan = False,
    json: Json = False,
) -> None:
    """Make the INT4 base of a public checkpoint: a stock compressed-tensors directory."""
    if plan:
        emit(*_plan(public, group_size, json))
        return
    public_text = text(texts)
    with shown() as progress:
        base = quantize(
            public,
            out,
            method=method,
            bits=bits,
            group_size=group_size,
            text=public_text,
            windows=windows,
            seed=seed,
            skip=tuple(skip or ()),
            progress=progress,
        )
        stream = None
        if repair_density:
            options = RepairOptions(density=repair_density, seed=seed)
            stream = repair(base, public, text=public_text, options=options, progress=progress)
    errors = base.manifest.relative_error
    result = {
        "base": str(base.path),
        "base_id": base.id,
        "layers": len(base.layers),
        "skipped": dict(base.manifest.skipped),
        "worst_relative_error": max(errors.values(), default=0.0),
        "repair": stream.id if stream else None,
    }
    lines = [f"{base.path}: {len(base.layers)} linears in INT4, base {base.id[:12]}"]
    lines += [f"  left alone: {name} ({why})" for name, why in base.manifest.skipped.items()]
    if stream:
        lines.append(f"  repair: density {stream.manifest.density:.4f}, stream {stream.id[:12]}")
    emit(result, json, "\n".join(lines))


def _plan(public: str, group_size: int, json: bool) -> tuple[dict[str, object], bool, str]:
    checkpoint = Checkpoint(public)
    checkpoint.validate()
    layers, skipped = linear_layers(checkpoint.skeleton(), group_size, checkpoint.naming)
    weights = sum(n * k for n, k in layers.values())
    widest = max((k for _, k in layers.values()), default=0)
    result: dict[str, object] = {
        "layers": len(layers),
        "weights": weights,
        "skipped": skipped,
        "base_bytes": weights // 2 + 2 * weights // group_size,
        "hessian_bytes": 3 * 4 * widest * widest,
    }
    text = (
        f"{len(layers)} linears, {weights:,} weights → {result['base_bytes']:,} bytes of base; "
        f"the largest second moments take {result['hessian_bytes']:,} bytes"
    )
    text += "".join(f"\n  left alone: {name} ({why})" for name, why in skipped.items())
    return result, json, text
