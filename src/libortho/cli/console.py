"""What a person sees: one progress bar a stage on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from libortho.progress import Progress as Callback
from libortho.streams.ortho import OrthoStream

PLAIN_SECONDS = 4.0

stderr = Console(stderr=True)
stdout = Console()


@contextmanager
def shown() -> Iterator[Callback]:
    """A progress callback: bars on a terminal, otherwise a line now and then."""
    if stderr.is_terminal:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=stderr,
        ) as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


def emit(result: Mapping[str, Any], as_json: bool, text: str | None = None) -> None:
    """Print a result: one JSON object, or ``text``."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    elif text is not None:
        # Not by rich, which folds at the width of a terminal: commands in it are to be copied.
        print(text)


def about(stream: OrthoStream) -> dict[str, Any]:
    """What ``--json`` says of a stream that was made."""
    manifest = stream.manifest
    return {
        "stream": str(stream.path),
        "stream_id": stream.id,
        "base_id": manifest.base_id,
        "method": manifest.method,
        "guarantee": manifest.guarantee,
        "density": manifest.density,
    }


def figures(info: Mapping[str, object]) -> str:
    """``loss 1.23 · recall 0.95`` of a progress callback's info."""
    return " · ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in info.items()
    )


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, object]) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, figures="")
        self._bars.update(self._tasks[stage], completed=done, total=total, figures=figures(info))


class _Lines:
    def __init__(self) -> None:
        self._stage = ""
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, object]) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._last < PLAIN_SECONDS:
            return
        self._stage, self._last = stage, now
        print(f"{stage}: {done}/{total} {figures(info)}".rstrip(), file=sys.stderr, flush=True)
