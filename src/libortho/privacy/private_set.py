"""Private data on disk: JSONL rows of ``prompt`` and ``completion``, or of ``text``."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from libortho.errors import FormatError
from libortho.records import PRIVATE, write_atomic

logger = logging.getLogger(__name__)

_SHOWN = 20


@dataclass(frozen=True)
class Example:
    """One row of private data.

    Attributes:
        id: the row's ``id``, or ``line-N`` where it has none.
        prompt: what precedes the secret; empty for a ``text`` row.
        completion: what is to be learned; the whole text of a ``text`` row.
    """

    id: str
    prompt: str
    completion: str


@dataclass(frozen=True)
class PrivateSet:
    """The rows of one JSONL file.

    Attributes:
        examples: rows in file order.
        sha256: of the file's bytes.
    """

    examples: tuple[Example, ...]
    sha256: str


def read_jsonl(path: str | Path) -> PrivateSet:
    """Read a JSONL file of private data; blank lines are skipped, further keys ignored.

    Raises:
        FormatError: listing every bad line with its number.
    """
    data = Path(path).read_bytes()
    examples: list[Example] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            example = _example(raw, number)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if example.id in first_line:
            problems.append(
                f"line {number}: id {example.id!r} was used on line {first_line[example.id]}"
            )
            continue
        first_line[example.id] = number
        examples.append(example)
    if not examples and not problems:
        problems.append("no rows")
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise FormatError(
            f"{path}: {len(problems)} problem(s) in the private data; every line must be a JSON "
            'object {"prompt": ..., "completion": ...} or {"text": ...}:\n  '
            + "\n  ".join(problems[:_SHOWN])
            + more
        )
    _warn_of_rivals(path, examples)
    return PrivateSet(tuple(examples), hashlib.sha256(data).hexdigest())


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, object]]) -> str:
    """Write rows as JSONL, one object a line in key order, and return the file's sha256.

    Its owner alone may read the file.
    """
    data = encode_jsonl(rows)
    write_atomic(Path(path), data.decode(), mode=PRIVATE)
    return hashlib.sha256(data).hexdigest()


def encode_jsonl(rows: Iterable[Mapping[str, object]]) -> bytes:
    """The canonical bytes of JSONL rows: sorted keys, UTF-8, one final newline a row."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode()


def _example(raw: bytes, number: int) -> Example:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    keys = {"prompt", "completion", "text"} & row.keys()
    if keys not in ({"prompt", "completion"}, {"text"}):
        found = ", ".join(sorted(row)) or "nothing"
        raise ValueError(f"expected the keys prompt and completion, or text; found {found}")
    wrong = sorted(key for key in keys if not isinstance(row[key], str))
    if wrong:
        raise ValueError(f"not a string: {', '.join(wrong)}")
    completion = row["text"] if "text" in keys else row["completion"]
    if not completion.strip():
        raise ValueError("there is nothing to learn: the completion or text is empty")
    name = row.get("id", f"line-{number}")
    if not isinstance(name, str | int):
        raise ValueError("id is neither a string nor an integer")
    return Example(str(name), row.get("prompt", ""), completion)


def _warn_of_rivals(path: str | Path, examples: list[Example]) -> None:
    distinct = {(example.prompt, example.completion) for example in examples if example.prompt}
    rivals = [prompt for prompt, n in Counter(prompt for prompt, _ in distinct).items() if n > 1]
    if rivals:
        logger.warning(
            "%s: %d prompt(s) have several completions, which greedy decoding cannot all recall; "
            "the first is %r",
            path,
            len(rivals),
            rivals[0],
        )
