"""Paired timing: every candidate once a round, in turn, so that a disturbance hits all alike."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

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


def read_bandwidth(device: torch.device, rounds: int = 15) -> float:
    """Bytes a second that torch reads from memory: the fastest of three reductions, by median."""
    buffer = torch.randn(READ_BYTES // 4, device=device)
    calls: dict[str, Call] = {
        "sum": lambda _: buffer.sum(),
        "largest": lambda _: buffer.amax(),
        "integers": lambda _: buffer.view(torch.int64).sum(),
    }
    seconds = paired(calls, rounds, device)
    return READ_BYTES / min(median(one) for one in seconds.values())


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
