"""Text files of documents: xz-compressed UTF-8, separated by a line ``<|endoftext|>``."""

from __future__ import annotations

import lzma
import os
from collections.abc import Sequence
from pathlib import Path

SEPARATOR = "<|endoftext|>"
_FENCE = f"\n{SEPARATOR}\n"
# Literal context 4 and no position bits suit prose: text has no alignment to exploit.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def join_documents(documents: Sequence[str]) -> str:
    """Put documents into one text that `split_documents` takes apart again, unchanged.

    Raises:
        ValueError: a document holds a line that equals the separator.
    """
    bad = [i for i, text in enumerate(documents) if SEPARATOR in text.split("\n")]
    if bad:
        raise ValueError(
            f"documents {bad} hold a line {SEPARATOR!r}, which separates documents: remove it first"
        )
    return _FENCE.join(documents)


def split_documents(text: str) -> list[str]:
    """Return the documents of a text, with all their own white space."""
    return text.split(_FENCE)


def compress(documents: Sequence[str]) -> bytes:
    """Return the xz bytes of the documents; equal documents give equal bytes."""
    data = join_documents(documents).encode()
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=_FILTERS)


def read_documents(path: Path) -> list[str]:
    """Read a ``.txt.xz`` file of documents."""
    return split_documents(lzma.decompress(path.read_bytes()).decode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
