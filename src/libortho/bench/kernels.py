"""The op against itself (α) and against its peers, shape by shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor

from libortho import ops
from libortho.bench.layers import RandomLayer, random_layer
from libortho.bench.peers import PeerUnavailable, prepared
from libortho.bench.timing import (
    READ_BYTES,
    RECORDED,
    Call,
    entered,
    fastest_read,
    paired,
    ratio,
    reads,
)
from libortho.progress import Progress, silent

BASE = "base only"
FLOOR = "base's bytes, only read"
QUICK_SHAPE = (4096, 4096)
QUICK_ROUNDS = {1: 120, 16: 60}
"""By rows M."""
IN_A_ROW = 8
"""Calls of one row behind a figure: ratios stand a percent apart, single calls spread by ten."""


@dataclass(frozen=True)
class Measurement:
    """One candidate at one shape and batch.

    Attributes:
        name: of the candidate, such as ``alpha=1 at 1%`` or ``torch bf16``.
        microseconds: lower quartile, median and upper quartile.
        over_base: median of the candidate over the median of the op on the base alone.
    """

    shape: tuple[int, int]
    rows: int
    name: str
    microseconds: tuple[float, float, float]
    over_base: float


def candidates(layer: RandomLayer, x: Tensor) -> dict[str, Call]:
    """The op by state of the gate: base only, and per density α = 0, 1 and mixed."""
    rows = x.shape[0]
    closed, opened = (make(1, rows, device=x.device) for make in (torch.zeros, torch.ones))
    mixed = opened.clone()
    mixed[:, ::2] = 0
    calls = {BASE: layer.call(x, None, None)}
    for density in layer.streams:
        calls[f"alpha=0 at {100 * density:g}%"] = layer.call(x, density, closed)
        calls[f"alpha=1 at {100 * density:g}%"] = layer.call(x, density, opened)
        if rows > 1:
            calls[f"alpha mixed at {100 * density:g}%"] = layer.call(x, density, mixed)
    return calls


def measure(
    shapes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    densities: tuple[float, ...],
    peers: Sequence[str],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.bfloat16,
    rounds: int = 40,
    progress: Progress = silent,
) -> tuple[list[Measurement], dict[str, str]]:
    """Times the op and the peers at every shape and batch, and what reading the base alone takes.

    Returns:
        The measurements, and why a peer was skipped: ``peer, N×K, M`` → reason.
    """
    found: list[Measurement] = []
    skipped: dict[str, str] = {}
    done = 0
    for shape in shapes:
        layer = random_layer(shape, densities, device)
        for rows in batches:
            x = torch.randn(rows, shape[1], device=device).to(dtype)
            calls = candidates(layer, x)
            for name in peers:
                try:
                    calls[name] = prepared(name, layer, x)
                except PeerUnavailable as error:
                    skipped[f"{name}, {shape[0]}×{shape[1]}, M = {rows}"] = str(error)
            with torch.no_grad():
                recorded = max(RECORDED, len(layer.bases))
                seconds = paired(calls | reads(device), rounds, device, recorded, _in_a_row(rows))
            part = layer.base_bytes / READ_BYTES
            seconds[FLOOR] = [part * one for one in fastest_read(seconds)]
            found += [_measurement(shape, rows, name, seconds) for name in (*calls, FLOOR)]
            done += 1
            progress("measure", done, len(shapes) * len(batches), {"shape": f"{shape}, {rows}"})
    return found, skipped


def quick(device: torch.device, rounds: Mapping[int, int] = QUICK_ROUNDS) -> dict[str, float | int]:
    """The headline ratios at 4096 × 4096, bf16: medians of paired runs.

    ``*_vs_base`` and ``alpha1_vs_alpha0_*`` are times over times (1 is best), ``*_speedup_*`` the
    other way round; ``bandwidth_fraction`` is the base's bytes a second over what torch reads in
    the same rounds.

    Args:
        rounds: paired runs, for 1 row and for 16.

    Raises:
        PeerUnavailable: a peer of the headline cannot be measured here.
    """
    with torch.no_grad():
        return _quick(device, rounds)


def _quick(device: torch.device, rounds: Mapping[int, int]) -> dict[str, float | int]:
    layer = random_layer(QUICK_SHAPE, (0.01, 0.05), device)
    counted = ops.native_op_calls()
    made = 0
    seconds: dict[int, Mapping[str, list[float]]] = {}
    for rows, turns in rounds.items():
        x = torch.randn(rows, QUICK_SHAPE[1], device=device).to(torch.bfloat16)
        ours = candidates(layer, x) if rows == 1 else {BASE: layer.call(x, None, None)}
        peers = {name: prepared(name, layer, x) for name in ("torch bf16", "aten int4")}
        floor = reads(device) if rows == 1 else {}
        row = _in_a_row(rows)
        seconds[rows] = paired(ours | peers | floor, turns, device, in_a_row=row)
        made += len(ours) * entered(turns, device, in_a_row=row)
    one, sixteen = seconds[1], seconds[16]
    best = min(("torch bf16", "aten int4"), key=lambda name: median(sixteen[name]))
    bandwidth = READ_BYTES / median(fastest_read(one))
    return {
        "alpha0_vs_base": ratio(one, "alpha=0 at 5%", BASE),
        "m1_speedup_vs_bf16": ratio(one, "torch bf16", BASE),
        "m1_speedup_vs_aten_int4": ratio(one, "aten int4", BASE),
        "alpha1_vs_alpha0_density1": ratio(one, "alpha=1 at 1%", "alpha=0 at 1%"),
        "alpha1_vs_alpha0_density5": ratio(one, "alpha=1 at 5%", "alpha=0 at 5%"),
        "m16_speedup_vs_best": ratio(sixteen, best, BASE),
        "bandwidth_fraction": layer.base_bytes / median(one[BASE]) / bandwidth,
        "native_op_calls": ops.native_op_calls() - counted,
        "expected_op_calls": made,
    }


def _in_a_row(rows: int) -> int:
    return max(1, IN_A_ROW // rows)


def _measurement(
    shape: tuple[int, int], rows: int, name: str, seconds: Mapping[str, list[float]]
) -> Measurement:
    low, middle, high = (1e6 * value for value in quantiles(seconds[name], n=4))
    return Measurement(shape, rows, name, (low, middle, high), ratio(seconds, name, BASE))
