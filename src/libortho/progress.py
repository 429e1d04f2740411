"""How long work reports on itself: a callback, so that the library never prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Progress = Callable[[str, int, int, Mapping[str, object]], None]
"""Called as ``progress(stage, done, total, info)``; ``info`` holds figures such as the loss."""


def silent(stage: str, done: int, total: int, info: Mapping[str, object]) -> None:
    """Report nothing: the default of every ``progress`` argument."""
