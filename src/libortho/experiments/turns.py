"""Several processes on one folder: each thing in it is made by one of them, once.

A lock of the operating system goes with the process that holds it, however that ends. Where there
is none (no ``fcntl``, or a file system without ``flock``) filelock marks the folder with a file
instead, and a process that was killed may leave it behind: delete ``.NAME.lock`` then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def turn(folder: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Be the only process, and in it the only thread, that is at ``name`` in ``folder``.

    Args:
        folder: made where it is absent; gets ``.NAME.lock``.
        wait: for who is at it; else False is yielded where there is one.

    Yields:
        whether it is this process's turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
