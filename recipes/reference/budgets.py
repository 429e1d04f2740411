"""How long to train: longer schedules are tried while they lower the held-out loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .train import TrainResult


@dataclass(frozen=True)
class Choice:
    """The run that is kept, and what is known of every run.

    Attributes:
        tokens: schedule of the run that is kept.
        result: that run.
        runs: per schedule ``tokens`` and what was found, or why it was not run.
    """

    tokens: int
    result: TrainResult
    runs: list[dict[str, Any]]


def choose_budget(
    budgets: Sequence[int],
    run: Callable[[int], TrainResult],
    keep: Callable[[int, TrainResult, list[dict[str, Any]]], None],
    seconds_limit: float | None = None,
) -> Choice:
    """Train with growing schedules until one does not beat its predecessor's held-out loss.

    A schedule is a whole run of its own: a cosine that ends at 0 cannot be prolonged.

    Args:
        budgets: tokens of each schedule.
        run: trains one schedule.
        keep: called each time a run becomes the best one, with what is known of all so far.
        seconds_limit: a further run does not start if, at the speed of the one before, it would
            end later than this after the call.
    """
    ordered = sorted(set(budgets))
    if not ordered:
        raise ValueError("no token budget was given: name at least one, for instance 300M")
    begun = time.monotonic()
    best: tuple[int, TrainResult] | None = None
    runs: list[dict[str, Any]] = []
    for tokens in ordered:
        if best is not None and seconds_limit is not None:
            expected = best[1].seconds * tokens / best[0]
            if time.monotonic() - begun + expected > seconds_limit:
                runs.append({"tokens": tokens, "not_run": f"limit of {seconds_limit:g} s"})
                break
        result = run(tokens)
        runs.append(
            {
                "tokens": tokens,
                "heldout_loss": result.heldout_loss,
                "seconds": round(result.seconds, 1),
                "curve": result.curve,
            }
        )
        if best is not None and result.heldout_loss >= best[1].heldout_loss:
            break
        best = (tokens, result)
        keep(tokens, result, runs)
    assert best is not None
    return Choice(best[0], best[1], runs)
