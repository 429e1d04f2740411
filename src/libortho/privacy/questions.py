r"""Questions with right and wrong answers, in the files of TOFU (Maini et al., arXiv 2401.06121).

A folder holds JSON lines:

    forget10.json, retain90.json                      ``question``, ``answer``: what is trained on
    forget10_perturbed.json, retain_perturbed.json    with ``paraphrased_answer`` and a list
                                                      ``perturbed_answer`` of wrong ones
    real_authors_perturbed.json, …                    any more of these: what the model knew before;
                                                      without a paraphrase the answer stands for it

A row with ``"verbatim": true`` is asked in the words of its ``question`` alone, without the frame
``Question: …\nAnswer:``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from libortho.errors import ConfigError, FormatError
from libortho.privacy.private_set import Example
from libortho.records import PRIVATE, write_atomic

DOWNLOAD = "hf download locuslab/TOFU --repo-type dataset --local-dir TOFU"
FORGET, RETAIN = "forget", "retain"
_USUAL = "forget10"
PROBES = "_perturbed.json"
"""How the name of a file of probes ends."""
_SHOWN = 20


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        paraphrased: the right answer in other words; the answer itself where there are none.
        perturbed: wrong answers in the words of the paraphrase; empty where none were written.
        verbatim: the question is all that the model is given.
    """

    question: str
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]
    verbatim: bool = False

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return self.question if self.verbatim else f"Question: {self.question}\nAnswer:"

    def example(self, name: str, answer: str | None = None) -> Example:
        """The question as a row of private data, with another answer on demand."""
        return Example(name, self.prompt, f" {self.answer if answer is None else answer}")


@dataclass(frozen=True)
class QuestionSets:
    """What is trained on, and what is asked.

    Attributes:
        name: of the split that is to be forgotten, such as ``forget10``.
        sha256: over the files, in order of their names.
        forget, retain: the rows of training.
        probes: questions with wrong answers by set: ``forget``, ``retain``, and others.
    """

    name: str
    sha256: str
    forget: tuple[Question, ...]
    retain: tuple[Question, ...]
    probes: Mapping[str, tuple[Question, ...]]

    def shortened(self, most: int) -> QuestionSets:
        """The same with at most so many probes a set, spread evenly over it."""
        probes = {
            name: tuple(rows[i * len(rows) // most] for i in range(most))
            if len(rows) > most
            else rows
            for name, rows in self.probes.items()
        }
        return QuestionSets(self.name, self.sha256, self.forget, self.retain, probes)


def read_sets(folder: str | Path) -> QuestionSets:
    """Read a folder of TOFU's files; of several splits ``forget10``.

    Raises:
        ConfigError: files are missing; all of them are named, with the command that brings TOFU.
        FormatError: listing every bad line of every file.
    """
    where = Path(folder)
    splits = sorted(
        file.stem for file in where.glob(f"{FORGET}*.json") if re.fullmatch(r"\D+\d+", file.stem)
    )
    name = _USUAL if _USUAL in splits or not splits else splits[0]
    if len(splits) > 1 and name != _USUAL:
        raise ConfigError(f"{where} holds {', '.join(splits)}: keep one of them, or {_USUAL}.json")
    kept = f"{RETAIN}{100 - int(name.removeprefix(FORGET)):02d}"
    needed = {
        FORGET: f"{name}.json",
        RETAIN: f"{kept}.json",
        f"{FORGET} probes": f"{name}{PROBES}",
        f"{RETAIN} probes": f"{RETAIN}{PROBES}",
    }
    missing = [file for file in needed.values() if not (where / file).is_file()]
    if missing:
        raise ConfigError(
            f"{where} lacks {', '.join(missing)}; it must hold TOFU's files, which come by: "
            f"{DOWNLOAD}"
        )
    others = {
        file.name.removesuffix(PROBES): file.name
        for file in sorted(where.glob(f"*{PROBES}"))
        if not file.name.startswith((FORGET, RETAIN))
    }
    read: dict[str, tuple[Question, ...]] = {}
    problems: list[str] = []
    for key, file_name in {**needed, **others}.items():
        probes = file_name.endswith(PROBES)
        read[key], bad = _read(where / file_name, probes=probes)
        problems += [f"{file_name}, {one}" for one in bad]
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise FormatError(f"{where}:\n  " + "\n  ".join(problems[:_SHOWN]) + more)
    digest = hashlib.sha256()
    for file_name in sorted([*needed.values(), *others.values()]):
        digest.update(hashlib.sha256((where / file_name).read_bytes()).digest())
    probed = {FORGET: read[f"{FORGET} probes"], RETAIN: read[f"{RETAIN} probes"]}
    probed |= {key: read[key] for key in others}
    return QuestionSets(name, digest.hexdigest(), read[FORGET], read[RETAIN], probed)


def write_questions(path: Path, rows: Sequence[Question], *, probes: bool) -> None:
    """Write rows as TOFU's files hold them; wrong answers and paraphrases only in ``probes``.

    Its owner alone may read the file: some of these rows are to be forgotten.
    """
    lines = []
    for row in rows:
        told: dict[str, object] = {"question": row.question, "answer": row.answer}
        if probes:
            told |= {"paraphrased_answer": row.paraphrased, "perturbed_answer": [*row.perturbed]}
        if row.verbatim:
            told["verbatim"] = True
        lines.append(json.dumps(told, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines), mode=PRIVATE)


def _read(path: Path, *, probes: bool) -> tuple[tuple[Question, ...], list[str]]:
    rows, bad = [], []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_question(json.loads(line), probes=probes))
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if not rows and not bad:
        bad.append("no rows")
    return tuple(rows), bad


def _question(row: object, *, probes: bool) -> Question:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    empty = [key for key in ("question", "answer") if not _is_text(row.get(key))]
    if empty:
        raise ValueError(f"no text under {', '.join(empty)}")
    paraphrased = row.get("paraphrased_answer", row["answer"])
    wrong = row.get("perturbed_answer", [])
    if not isinstance(paraphrased, str) or not paraphrased.strip():
        raise ValueError("paraphrased_answer is no text")
    if not isinstance(wrong, list) or not all(map(_is_text, wrong)) or (probes and not wrong):
        raise ValueError("perturbed_answer is no list of texts")
    verbatim = row.get("verbatim", False)
    if not isinstance(verbatim, bool):
        raise ValueError(f"verbatim is neither true nor false: {verbatim!r}")
    return Question(row["question"], row["answer"], paraphrased, tuple(wrong), verbatim)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
