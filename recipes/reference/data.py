"""The corpus as documents, the documents as ids, the ids as shuffled windows."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .documents import read_documents, write_atomically

ARITHMETIC = "arith.txt.xz"
ARITHMETIC_REPEATS = 3
_CHUNK = 4_000_000
"""Characters encoded at once: an encoding costs far more memory than its ids."""


@dataclass(frozen=True)
class Corpus:
    """Documents as one row of ids.

    Attributes:
        ids: uint16, every document preceded by the id of ``<|endoftext|>``.
        starts: int64 [documents + 1], where each document begins, and the end.
        repeats: int64 [documents], how often a pass over the corpus shows each document.
    """

    ids: npt.NDArray[np.uint16]
    starts: npt.NDArray[np.int64]
    repeats: npt.NDArray[np.int64]

    @property
    def tokens_per_pass(self) -> int:
        return int((np.diff(self.starts) * self.repeats).sum())


def corpus_files(folder: Path) -> list[Path]:
    """Return the files of ``train/``, sorted.

    Raises:
        FileNotFoundError: the folder is not a corpus.
    """
    files = sorted((folder / "train").glob("*.xz"))
    wanted = [folder / "eval" / name for name in ("valid.txt.xz", "arith_test.jsonl")]
    missing = [str(path) for path in wanted if not path.is_file()]
    if not files:
        missing.append(str(folder / "train" / "*.xz"))
    if missing:
        raise FileNotFoundError(
            f"{folder} is not the reference corpus: {', '.join(missing)} not found; "
            "give its folder with --corpus (the model card lists its sources)"
        )
    return files


def train_documents(path: Path) -> list[str]:
    """Return the documents of one training file.

    Problems of arithmetic (a line each) and of GSM8K (a JSON line each) are documents of their
    own; other files hold separated documents.
    """
    if path.name == ARITHMETIC:
        return lzma.decompress(path.read_bytes()).decode().splitlines()
    if path.name.endswith(".jsonl.xz"):
        lines = lzma.decompress(path.read_bytes()).decode().splitlines()
        return [_problem(json.loads(line)) for line in lines]
    return read_documents(path)


def _problem(row: dict[str, str]) -> str:
    return f"Question: {row['question']}\nAnswer: {row['answer']}"


def encode_documents(
    tokenizer: Tokenizer, documents: Sequence[str]
) -> list[npt.NDArray[np.uint16]]:
    """Return each document's ids, ``<|endoftext|>`` first."""
    encoded: list[npt.NDArray[np.uint16]] = []
    chunk: list[str] = []
    size = 0
    for i, text in enumerate(documents):
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK or i == len(documents) - 1:
            encoded += [np.array(e.ids, np.uint16) for e in tokenizer.encode_batch_fast(chunk)]
            chunk, size = [], 0
    return encoded


def encode_corpus(tokenizer: Tokenizer, files: Sequence[Path], cache: Path) -> Corpus:
    """Encode the training files, or read `cache` where it holds exactly this."""
    key = hashlib.sha256(tokenizer.to_str().encode())
    for path in files:
        key.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    if cache.is_file():
        with np.load(cache) as held:
            if str(held["key"]) == key.hexdigest():
                return Corpus(held["ids"], held["starts"], held["repeats"])
    encoded: list[npt.NDArray[np.uint16]] = []
    repeats: list[int] = []
    for path in files:
        part = encode_documents(tokenizer, train_documents(path))
        encoded += part
        repeats += [ARITHMETIC_REPEATS if path.name == ARITHMETIC else 1] * len(part)
    corpus = Corpus(
        np.concatenate(encoded),
        np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        np.array(repeats, np.int64),
    )
    _save(cache, key.hexdigest(), corpus)
    return corpus


def _save(path: Path, key: str, corpus: Corpus) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, key=key, ids=corpus.ids, starts=corpus.starts, repeats=corpus.repeats)
    write_atomically(path, buffer.getvalue())


def pass_windows(corpus: Corpus, length: int, seed: int, number: int) -> npt.NDArray[np.uint16]:
    """Return one pass over the corpus as shuffled windows, [windows, length + 1].

    Documents are put in a random order and joined; the row is cut into windows, which share one
    id with the next (the last target is the next input); the tail is dropped.
    """
    rng = np.random.default_rng([seed, number])
    order = rng.permutation(np.repeat(np.arange(len(corpus.repeats)), corpus.repeats))
    sizes = np.diff(corpus.starts)[order]
    ends = np.cumsum(sizes)
    shift = np.repeat(corpus.starts[order] - (ends - sizes), sizes)
    row = corpus.ids[shift + np.arange(len(shift))]
    count = (len(row) - 1) // length
    if not count:
        raise ValueError(f"the corpus has {len(row)} tokens, less than a window of {length + 1}")
    windows = np.lib.stride_tricks.sliding_window_view(row, length + 1)[: count * length : length]
    return windows[rng.permutation(count)]


def heldout_windows(tokenizer: Tokenizer, path: Path, length: int) -> npt.NDArray[np.uint16]:
    """Return held-out documents joined and cut into [windows, length], the tail dropped."""
    row = np.concatenate(encode_documents(tokenizer, read_documents(path)))
    count = len(row) // length
    if not count:
        raise ValueError(f"{path} has {len(row)} tokens, less than a window of {length}")
    return row[: count * length].reshape(count, length)
