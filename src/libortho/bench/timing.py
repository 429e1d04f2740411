"""Paired timing: every candidate once a round, in turn, so that a disturbance hits all alike."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

from libortho.pages import on_large_pages

READ = "read: "
READ_BYTES = 256 << 20
WARM_UP = 2

Call = Callable[[int], object]
"""A candidate; its argument, the number of the call, says which copy of the weights to use."""


def paired(calls: Mapping[str, Call], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every call, [rounds] by name.

    Calls are numbered through, so that candidates which share their copies of the weights never
    find the one that the candidate before has just left in a cache. Every round has an order of
    its own: what a candidate leaves behind is not always found by the same one.
    """
    order = list(calls.items())
    shuffled = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    numbers = itertools.count()
    for turn in range(-WARM_UP, rounds):
        shuffled.shuffle(order)
        for name, call in order:
            taken = _once(call, next(numbers), device)
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


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


def _once(call: Call, turn: int, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        call(turn)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begun = time.perf_counter()
    call(turn)
    return time.perf_counter() - begun
