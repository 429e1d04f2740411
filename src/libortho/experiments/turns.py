"""Several processes on one folder: each thing in it is made by one of them, once.

A lock goes with the process that holds it, however that ends, so that none is ever left behind.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(folder: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Be the only process that is at ``name`` in ``folder``.

    Args:
        folder: made where it is absent; gets ``.NAME.lock``.
        wait: for a process that is at it; else False is yielded where there is one.

    Yields:
        whether it is this process's turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
