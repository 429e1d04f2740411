"""``bench``: how fast the op is here, beside its peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from libortho import bench, ops
from libortho.bench.peers import PeerUnavailable
from libortho.bench.results import collect
from libortho.cli.console import emit, shown, stdout
from libortho.cli.options import Json, torch_device
from libortho.errors import BackendUnavailable, ConfigError

SHAPES = ("4096x4096", "1024x4096", "14336x4096", "4096x14336")
BATCHES = (1, 4, 16, 64)
DENSITIES = (0.01, 0.05)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("bench")(bench_verb)


def bench_verb(
    quick: Annotated[
        bool, typer.Option("--quick", help="The headline ratios at 4096 x 4096, within a minute.")
    ] = False,
    shapes: Annotated[
        list[str] | None, typer.Option("--shape", help="N x K, such as 4096x4096; repeatable.")
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--rows", min=1, help="Rows M of the batch; repeatable.")
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option("--peer", help=f"Of: {', '.join(bench.PEERS)}; repeatable. All by default."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=4, help="Paired runs of every candidate.")] = 40,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of results.")] = Path(
        "benchmarks/results"
    ),
    json: Json = False,
) -> None:
    """Time the op against its peers, weights rotated so that they do not sit in a cache."""
    where = torch_device(device)
    backend = ops.cuda_backend() if where.type == "cuda" else ops.backend()
    if backend.name != "native":
        raise BackendUnavailable(
            f"bench times native kernels, and the reference runs here: {backend.reason}"
        )
    unknown = sorted(set(peers or ()) - set(bench.PEERS))
    if unknown:
        raise ConfigError(f"--peer: unknown {', '.join(unknown)}; known: {', '.join(bench.PEERS)}")
    if quick:
        try:
            found = bench.quick(where)
        except PeerUnavailable as error:
            raise BackendUnavailable(f"a peer of the headline cannot run: {error}") from error
        lines = [f"{name}: {value:.4g}" for name, value in found.items()]
        emit(found, json, "\n".join(lines))
        return
    with shown() as progress:
        measurements, skipped = bench.measure(
            [_shape(text) for text in shapes or SHAPES],
            batches or BATCHES,
            DENSITIES,
            peers or list(bench.PEERS),
            where,
            rounds=rounds,
            progress=progress,
        )
    result = collect(
        measurements,
        skipped,
        device=where.type,
        dtype="bfloat16",
        rounds=rounds,
    )
    path = bench.write(result, out)
    if not json:
        stdout.print(_table(result))
    skips = [f"skipped {what}: {why}" for what, why in skipped.items()]
    emit(result.model_dump(mode="json") | {"file": str(path)}, json, "\n".join([*skips, str(path)]))


def _shape(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"--shape {text!r}: expected N x K, such as 4096x4096")
    return int(parts[0]), int(parts[1])


def _table(result: bench.Benchmark) -> Table:
    table = Table(title=f"{result.hardware.cpu}, {result.backend}, {result.dtype}")
    for column in ("N×K", "M", "candidate", "µs", "quartiles", "over base only"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for one in result.measurements:
        low, middle, high = one.microseconds
        table.add_row(
            f"{one.shape[0]}×{one.shape[1]}",
            str(one.rows),
            one.name,
            f"{middle:.0f}",
            f"{low:.0f} … {high:.0f}",
            f"{one.over_base:.3f}",
        )
    return table
