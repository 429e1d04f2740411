"""Paired timing: every candidate once a round, in turn, so that a disturbance hits all alike.

On CUDA a candidate's calls are recorded once, as a graph, and a round replays it: what Python and
the launches take on the host would otherwise hide the kernels.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from libortho.pages import on_large_pages

READ = "read: "
READ_BYTES = 256 << 20
WARM_UP = 2
RECORDED = 16

Call = Callable[[int], object]
"""A candidate; its argument, the number of the call, says which copy of the weights to use."""


def paired(
    calls: Mapping[str, Call],
    rounds: int,
    device: torch.device,
    recorded: int = RECORDED,
    in_a_row: int = 1,
) -> dict[str, list[float]]:
    """Seconds of a call, [rounds] by name.

    Calls are numbered through, so that candidates which share their copies of the weights never
    find the one that the candidate before has just left in a cache. Every round has an order of
    its own: what a candidate leaves behind is not always found by the same one.

    Args:
        recorded: calls in a graph on CUDA, of which a round gives the mean: as many as there are
            copies of the weights.
        in_a_row: calls on a CPU of which a round gives the mean, one right after the other as a
            model makes them. What ``reads`` does is long enough by itself.
    """
    numbers = itertools.count()
    runs: dict[str, Callable[[], float]] = {}
    for name, call in calls.items():
        if device.type == "cuda":
            runs[name] = partial(_mean, record(call, numbers, recorded), recorded, device)
        else:
            runs[name] = partial(_called, call, numbers, 1 if name.startswith(READ) else in_a_row)
    order = list(runs.items())
    shuffled = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-WARM_UP, rounds):
        shuffled.shuffle(order)
        for name, run in order:
            taken = run()
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def entered(rounds: int, device: torch.device, recorded: int = RECORDED, in_a_row: int = 1) -> int:
    """How often :func:`paired` enters a candidate, which a replay does not."""
    return WARM_UP + recorded if device.type == "cuda" else (WARM_UP + rounds) * in_a_row


@dataclass(frozen=True)
class Replay:
    """A recorded graph, and the call that holds the tensors which the graph reads and writes."""

    graph: torch.cuda.CUDAGraph
    call: Call

    def __call__(self) -> None:
        self.graph.replay()


def record(
    call: Call, numbers: Iterator[int], calls: int, warm_up: int = WARM_UP
) -> Callable[[], None]:
    """``calls`` calls on the current CUDA device as a graph; returns its replay.

    Raises:
        RuntimeError: the call does what cannot be recorded, such as waiting for the device.
    """
    for _ in range(warm_up):
        call(next(numbers))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call(next(numbers))
    return Replay(graph, call)


def replayed(replay: Callable[[], None], device: torch.device) -> float:
    """Seconds of one replay, by the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> float:
    """median(over) / median(under)."""
    return median(seconds[over]) / median(seconds[under])


def reads(device: torch.device) -> dict[str, Call]:
    """Reductions of READ_BYTES by torch, to be timed in the same rounds as what they judge.

    The buffer lies on large pages, as the weights of our layers do.
    """
    buffer = on_large_pages(torch.randn(READ_BYTES // 4, device=device))
    integers = buffer.view(torch.int64)
    return {
        READ + "sum": lambda _: buffer.sum(),
        READ + "largest": lambda _: buffer.amax(),
        READ + "integers": lambda _: integers.sum(),
    }


def fastest_read(seconds: Mapping[str, list[float]]) -> list[float]:
    """Seconds of the reduction of ``reads`` with the least median: READ_BYTES each."""
    return min((times for name, times in seconds.items() if name.startswith(READ)), key=median)


def _mean(replay: Callable[[], None], calls: int, device: torch.device) -> float:
    return replayed(replay, device) / calls


def _called(call: Call, numbers: Iterator[int], times: int) -> float:
    turns = [next(numbers) for _ in range(times)]
    begun = time.perf_counter()
    for turn in turns:
        call(turn)
    return (time.perf_counter() - begun) / times
