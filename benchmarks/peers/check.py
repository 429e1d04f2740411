"""Peers tried against float32 before they are timed, each in a process of its own.

A kernel built for another device can end its process: so it ends one that times nothing.

    python -m peers.check NAME LIBRARY SHAPES BATCHES     (the last two as JSON)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .cutlass import Cutlass
from .entry import KernelRefused
from .layers import random_base, random_csr
from .marlin import Marlin
from .peer import Peer, Tensors
from .spqr import SpQR
from .squeezellm import SqueezeLLM

KINDS: dict[str, type[Peer]] = {
    "marlin": Marlin,
    "cutlass": Cutlass,
    "spqr": SpQR,
    "squeezellm": SqueezeLLM,
}
MOST = 0.01
"""How far the farthest result may be off, over the largest."""
SECONDS = 90
DENSITY = 0.01
DEVICE = "cuda"
NO_LIBRARY = "no library was given (--{}); benchmarks/peers/README.md says how to build it"

Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Checked:
    """A peer, and those of its variants that are right wherever they will be timed.

    Attributes:
        peer: the kernel.
        variants: the right ones.
        error: their largest distance from float32, over the largest result.
        wrong: by other variant, where it failed and how.
    """

    peer: Peer
    variants: tuple[str, ...]
    error: float
    wrong: dict[str, str]


def checked(
    libraries: Mapping[str, Path | None], shapes: Shapes, batches: Sequence[int]
) -> tuple[list[Checked], dict[str, str]]:
    """The peers that can be timed, and by name why others cannot; all are tried at once."""
    skipped = {KINDS[one].name: NO_LIBRARY.format(one) for one in KINDS if not libraries.get(one)}
    asked = (json.dumps(shapes), json.dumps(batches))
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {name: library for name, library in libraries.items() if library}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.check", name, str(library), *asked],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, library in given.items()
    }
    passed = []
    for name, process in running.items():
        try:
            said = process.communicate(timeout=SECONDS)[0].strip().splitlines() or [""]
        except subprocess.TimeoutExpired:
            process.kill()
            said = [f"not done within {SECONDS} s"]
        if process.wait():
            told = [line for line in said if "Error" in line or "Refused" in line] or said
            skipped[KINDS[name].name] = f"its check ended with {process.returncode}: {told[-1]}"
            continue
        verdict = next((line for line in reversed(said) if line.startswith("{")), None)
        if verdict is None:
            skipped[KINDS[name].name] = f"its check told nothing of its variants: {said[-1]}"
            continue
        found: dict[str, dict[str, float | str]] = json.loads(verdict)
        right = {variant: one["error"] for variant, one in found.items() if "error" in one}
        wrong = {variant: str(one["wrong"]) for variant, one in found.items() if "wrong" in one}
        if right:
            error = max(float(one) for one in right.values())
            passed.append(Checked(KINDS[name](given[name]), tuple(right), error, wrong))
        else:
            skipped[KINDS[name].name] = "; ".join(f"{v} {why}".strip() for v, why in wrong.items())
    return passed, skipped


def verdicts(peer: Peer, shapes: Shapes, batches: Sequence[int]) -> dict[str, dict[str, object]]:
    """By variant ``{"error": its largest distance}`` or ``{"wrong": where and how}``."""
    found: dict[str, dict[str, object]] = {}
    for variant in peer.variants:
        largest = 0.0
        for where, call, wanted in _calls(peer, shapes, batches, variant):
            try:
                error = distance(captured(call), wanted)
            except KernelRefused as refused:
                found[variant] = {"wrong": f"{where}: {refused}"}
                break
            if error > MOST:
                found[variant] = {"wrong": f"{where}: off by {error:.3g} of the largest result"}
                break
            largest = max(largest, error)
        else:
            found[variant] = {"error": largest}
    return found


def distance(got: Tensor, wanted: Tensor) -> float:
    """The largest distance over the largest of ``wanted``; infinite where a result is NaN."""
    error = float((got.float() - wanted).abs().max() / wanted.abs().max())
    return float("inf") if error != error else error


def captured(call: Callable[[], Tensor]) -> Tensor:
    """What ``call`` gives when a CUDA graph replays it."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return y


def _calls(
    peer: Peer, shapes: Shapes, batches: Sequence[int], variant: str
) -> Iterator[tuple[str, Callable[[], Tensor], Tensor]]:
    for rows, columns in shapes:
        base = random_base(rows, columns, DEVICE)
        packed = peer.pack(base)
        dense = peer.dense(base, packed)
        streams: list[tuple[Tensors | None, Tensor]] = [(None, dense)]
        if peer.takes_streams:
            csr = random_csr(rows, columns, DENSITY, DEVICE)
            streams.append((peer.pack_stream(csr), dense + csr.to_dense().float()))
        for batch in (batch for batch in batches if batch <= peer.most_rows):
            x = torch.randn(batch, columns, device=DEVICE).to(peer.dtype)
            for stream, weight in streams:
                where = f"{rows}x{columns}, {batch} rows" + (", a stream" if stream else "")
                call = partial(peer.multiply, x, packed, stream, variant)
                yield where, call, x.float() @ weight.T


def main() -> None:
    name, library, shapes, batches = sys.argv[1:]
    torch.manual_seed(0)
    peer = KINDS[name](Path(library))
    print(json.dumps(verdicts(peer, json.loads(shapes), json.loads(batches))))


if __name__ == "__main__":
    main()
