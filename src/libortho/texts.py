"""Texts for calibration, replay and perplexity; each is known by its sha256."""

from __future__ import annotations

import hashlib
import importlib.resources
import lzma
import pydoc_data.topics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from libortho.errors import ConfigError, FormatError

SEPARATOR = "<|endoftext|>"
"""A line that stands between two documents of a text file."""

_AT_ONCE = 256


@dataclass(frozen=True)
class Text:
    """Documents of text.

    Attributes:
        name: as shown in tables.
        sha256: of the file's bytes as stored; of the joined UTF-8 text where there is no file.
        documents: in order, none empty.
    """

    name: str
    sha256: str
    documents: tuple[str, ...]


def calibration() -> Text:
    """Samples of the reference model for calibration and replay; package data."""
    return _shipped("calibration")


def arithmetic() -> Text:
    """Arithmetic in the wording that the reference model knows, a line a document; shipped."""
    return _shipped("arithmetic")


def replay() -> Text:
    """What training is held to by default: the calibration samples, and arithmetic.

    The samples alone show a model hardly any sums, and what replay does not show, a training of
    secrets made of digits may unlearn.
    """
    return _joined([calibration(), arithmetic()])


def heldout() -> Text:
    """Held-out samples of the reference model, shipped as package data.

    They follow the recipe of the calibration samples and are read by no training.
    """
    return _shipped("heldout")


def pydoc_topics() -> Text:
    """CPython's own documentation of the language, one document a topic, by topic name."""
    topics = pydoc_data.topics.topics
    documents = tuple(topics[name] for name in sorted(topics) if topics[name].strip())
    joined = "\n".join(documents).encode()
    return Text("pydoc", hashlib.sha256(joined).hexdigest(), documents)


def read_text(path: str | Path) -> Text:
    """A user's UTF-8 text, ``.xz`` compressed or plain.

    Raises:
        FormatError: where it is neither, or empty.
    """
    source = Path(path)
    return _parse(source.name, source.read_bytes(), compressed=source.suffix == ".xz")


def read_texts(paths: Sequence[str | Path]) -> Text:
    """Several files as one text; its sha256 is over theirs, in order.

    Raises:
        ConfigError: where a file is missing; all of them are named.
        FormatError: where one is no text, or empty.
    """
    missing = [str(path) for path in paths if not Path(path).is_file()]
    if missing or not paths:
        raise ConfigError(f"no such text file: {', '.join(missing) or 'none was given'}")
    texts = [read_text(path) for path in paths]
    return texts[0] if len(texts) == 1 else _joined(texts)


def windows(text: Text, tokenizer: Any, length: int, tokens: int | None = None) -> Tensor:
    """Tokenise each document on its own, join the ids and cut them into windows.

    What the tokenizer's post-processor puts before a sequence thus stands before each document.

    Args:
        text: what to cut.
        tokenizer: of the model that will read them.
        length: tokens of a window, usually the model's context.
        tokens: how many are wanted, rounded up to a whole window; all by default.

    Returns:
        [n, length] int64.

    Raises:
        ConfigError: where the text does not hold that many.
    """
    wanted = None if tokens is None else -(-tokens // length) * length
    ids: list[int] = []
    for start in range(0, len(text.documents), _AT_ONCE):
        # Many at once, which tokenizers take to all cores.
        documents = list(text.documents[start : start + _AT_ONCE])
        for one in tokenizer(documents, verbose=False)["input_ids"]:
            ids.extend(one)
        if wanted is not None and len(ids) >= wanted:
            break
    if len(ids) < (wanted or length):
        raise ConfigError(
            f"text {text.name} holds {len(ids)} tokens, {wanted or length} were asked for; ask "
            "for fewer, or give a longer text"
        )
    count = (wanted or len(ids)) // length
    return torch.tensor(ids[: count * length]).view(count, length)


def draw(text: Text, tokenizer: Any, length: int, count: int, seed: int) -> Tensor:
    """At most ``count`` windows of a text, without replacement, in an order that the seed gives.

    Returns:
        [n, length] int64, as cut by :func:`windows`.
    """
    cut = windows(text, tokenizer, length)
    generator = torch.Generator().manual_seed(seed)
    return cut[torch.randperm(len(cut), generator=generator)[:count]]


def _joined(texts: Sequence[Text]) -> Text:
    digest = hashlib.sha256("".join(text.sha256 for text in texts).encode()).hexdigest()
    documents = tuple(document for text in texts for document in text.documents)
    return Text("+".join(text.name for text in texts), digest, documents)


def _shipped(name: str) -> Text:
    resource = importlib.resources.files("libortho") / "reference" / "text" / f"{name}.txt.xz"
    if not resource.is_file():
        raise FormatError(
            f"{resource} is missing from this installation; install libortho again, or give "
            "your own text with --text FILE"
        )
    return _parse(name, resource.read_bytes(), compressed=True)


def _parse(name: str, data: bytes, *, compressed: bool) -> Text:
    try:
        content = (lzma.decompress(data) if compressed else data).decode("utf-8")
    except lzma.LZMAError as error:
        raise FormatError(f"text {name}: not an xz file: {error}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"text {name}: not UTF-8 at byte {error.start}") from error
    documents: list[str] = []
    current: list[str] = []
    for line in [*content.split("\n"), SEPARATOR]:
        if line.rstrip("\r") != SEPARATOR:
            current.append(line)
            continue
        document = "\n".join(current)
        if document.strip():
            documents.append(document)
        current = []
    if not documents:
        raise FormatError(f"text {name}: it is empty")
    return Text(name, hashlib.sha256(data).hexdigest(), tuple(documents))
