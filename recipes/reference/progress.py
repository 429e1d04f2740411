"""How the recipe reports on itself. It stands alone: it needs no installed libortho."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console

Progress = Callable[[str, int, int, Mapping[str, object]], None]
"""Called as ``progress(stage, done, total, info)``; ``info`` holds figures such as the loss."""


def silent(stage: str, done: int, total: int, info: Mapping[str, object]) -> None:
    """Report nothing: the default of every ``progress`` argument."""


class Lines:
    """Progress as lines on stderr: at most one a second for each stage, its last one always."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._begun = time.monotonic()
        self._shown: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, object]) -> None:
        now = time.monotonic()
        if done < total and now - self._shown.get(stage, -1.0) < 1:
            return
        self._shown[stage] = now
        figures = "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in info.items()
        )
        line = f"{now - self._begun:7.1f} s  {stage}  {done}/{total}  {figures}"
        self._console.print(line, highlight=False, soft_wrap=True)
