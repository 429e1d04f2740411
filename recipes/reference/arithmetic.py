"""Arithmetic for replay, generated: ``python -m recipes.reference.arithmetic``.

A line a problem, in three of the wordings of the corpus, with its answer. None of them is a problem
that an experiment asks by its own plan, and ``make_problems`` leaves out those that stand here, so
that nothing is asked that was replayed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer

from libortho.evaluate.arithmetic import Operands, draw_problems

from .card import write_card
from .documents import compress, write_atomically

NAME = "arithmetic.txt.xz"
SEED = 1_000_000
TOKENS = 220_000
"""A quarter of what replay reads, the calibration samples being the rest."""
ASKED = 2_000
ASKED_SEEDS = (0, 1, 2)

_ROOT = Path(__file__).resolve().parents[2]


def asked(seed: int) -> set[Operands]:
    """The first problems that experiments ask by a seed."""
    found: dict[Operands, None] = {}
    for operands, _ in draw_problems(seed):
        found[operands] = None
        if len(found) == ASKED:
            break
    return set(found)


def arithmetic_documents(tokenizer: Tokenizer, tokens: int = TOKENS) -> list[str]:
    """Distinct problems and their answers, until they hold so many tokens."""
    seen = set[Operands]().union(*map(asked, ASKED_SEEDS))
    documents: list[str] = []
    for operands, problem in draw_problems(SEED):
        if operands in seen:
            continue
        seen.add(operands)
        documents.append(f"{problem.prompt} {problem.answer}")
        tokens -= len(tokenizer.encode(documents[-1]).ids)
        if tokens <= 0:
            break
    return documents


def write_arithmetic(tokenizer: Tokenizer, folder: Path) -> dict[str, dict[str, object]]:
    """Write ``arithmetic.txt.xz`` into a folder.

    Returns:
        Under the file's name its seed, bytes, documents, tokens and sha256.
    """
    documents = arithmetic_documents(tokenizer)
    data = compress(documents)
    write_atomically(folder / NAME, data)
    told = {
        "seed": SEED,
        "bytes": len(data),
        "documents": len(documents),
        "tokens": sum(len(one.ids) for one in tokenizer.encode_batch(documents)),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return {NAME: told}


def main() -> None:
    """Write the file beside the shipped samples, and what is told of it."""
    shipped = _ROOT / "src" / "libortho" / "reference"
    told = Path(__file__).with_name("results") / "results.json"
    results = json.loads(told.read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(shipped / "tokenizer.json"))
    results["samples"] |= write_arithmetic(tokenizer, shipped / "text")
    write_atomically(told, (json.dumps(results, indent=1) + "\n").encode())
    write_card(results, shipped / "README.md")


if __name__ == "__main__":
    main()
