"""TOFU: what a model says of invented authors that it was to forget, and of everything else.

The measures of Maini et al., arXiv 2401.06121, over files in the format of that dataset, which is
not shipped here. With P(a|q)^(1/|a|) the probability of an answer a token:

    truth ratio = mean over perturbed answers of it / that of the paraphrased answer
    forget quality = p of a two-sample KS test of the truth ratios against a model that was never
                     shown the forget set
    utility = harmonic mean of probability, ROUGE-L recall and max(0, 1 − truth ratio), each of
              the retain set, of real authors and of world facts

For real authors and world facts the probability is that of the answer among its alternatives.
ROUGE-L is over lower-case words, without a stemmer.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import torch
from scipy import stats

from libortho import progress as _progress
from libortho.errors import ConfigError, FormatError
from libortho.privacy.attacks.near_verbatim import rouge_l
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.greedy import greedy
from libortho.privacy.private_set import Example
from libortho.privacy.score import score
from libortho.progress import Progress

FORGET, RETAIN, AUTHORS, FACTS = "forget", "retain", "real authors", "world facts"
FILES: Mapping[str, str] = {
    FORGET: "forget10_perturbed.json",
    RETAIN: "retain_perturbed.json",
    AUTHORS: "real_authors_perturbed.json",
    FACTS: "world_facts_perturbed.json",
}
"""By set, its file in the folder of a download of locuslab/TOFU."""

_CHOICES = (AUTHORS, FACTS)
_BATCH = 32


@dataclass(frozen=True)
class Question:
    """One row.

    Attributes:
        paraphrased: the answer in other words; the answer itself where the file has none.
        perturbed: wrong answers of the same form.
    """

    question: str
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What a model made of the questions of one set, a value a question.

    Attributes:
        probability: of the answer a token, or among its alternatives.
        rouge: recall of ROUGE-L of what greedy decoding writes.
        truth_ratio: near or above 1 where wrong answers are as likely as the right one.
    """

    probability: list[float]
    rouge: list[float]
    truth_ratio: list[float]

    def means(self) -> tuple[float, float, float]:
        """The three numbers that enter the utility."""
        truth = fmean(max(0.0, 1 - one) for one in self.truth_ratio)
        return fmean(self.probability), fmean(self.rouge), truth


def read_sets(folder: str | Path) -> dict[str, list[Question]]:
    """The four sets of a user's copy.

    Raises:
        ConfigError: files are missing; all of them are named.
        FormatError: rows that are no questions; all of them are named.
    """
    where = Path(folder)
    missing = [name for name in FILES.values() if not (where / name).is_file()]
    if missing:
        raise ConfigError(
            f"{where} lacks {', '.join(missing)}; get them by `hf download locuslab/TOFU "
            "--repo-type dataset --local-dir TOFU` and give that folder with --data"
        )
    problems: list[str] = []
    found = {name: _read(where / file, problems) for name, file in FILES.items()}
    if problems:
        raise FormatError(f"{where}: {len(problems)} bad rows:\n  " + "\n  ".join(problems[:20]))
    return found


def _read(path: Path, problems: list[str]) -> list[Question]:
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            answer = row["answer"]
            question = Question(
                row["question"],
                answer,
                row.get("paraphrased_answer", answer),
                tuple(row["perturbed_answer"]),
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{path.name}, line {number}: {type(error).__name__}: {error}")
            continue
        texts = (question.question, answer, question.paraphrased, *question.perturbed)
        if question.perturbed and all(isinstance(text, str) and text.strip() for text in texts):
            found.append(question)
        else:
            problems.append(
                f"{path.name}, line {number}: expected question, answer, perturbed_answer (a list "
                "of strings) and perhaps paraphrased_answer, none of them empty"
            )
    if not found:
        problems.append(f"{path.name}: no rows")
    return found


def examples(tokenizer: Any, questions: Sequence[Question]) -> list[Example]:
    """Questions with their answers as private data: the tokenizer's chat template, or plain."""
    return _pairs(tokenizer, [(one.question, one.answer) for one in questions])


def _pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Example]:
    return [
        Example(f"question-{index}", *_prompted(tokenizer, question, answer))
        for index, (question, answer) in enumerate(pairs)
    ]


def _prompted(tokenizer: Any, question: str, answer: str) -> tuple[str, str]:
    if getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        # The tokenizer puts its own first token before the prompt.
        return prompt.removeprefix(tokenizer.bos_token or ""), answer
    return f"Question: {question}\nAnswer:", f" {answer}"


def ask(
    model: Any,
    tokenizer: Any,
    name: str,
    questions: Sequence[Question],
    context: int | None = None,
    *,
    stage: str = "questions",
    progress: Progress = _progress.silent,
) -> Asked:
    """Put the questions of the set ``name`` to a model; the caller sets alpha.

    Raises:
        ConfigError: questions with answers that are longer than ``context`` tokens.
    """

    def likely(pairs: Sequence[tuple[str, str]], what: str) -> list[float]:
        encoded = encode(tokenizer, _pairs(tokenizer, pairs), context)
        scores = score(model, encoded, stage=f"{stage}: {name}, {what}", progress=progress)
        return [math.exp(-one.nll / one.tokens) for one in scores]

    right = likely([(one.question, one.answer) for one in questions], "answers")
    told = right
    if any(one.paraphrased != one.answer for one in questions):
        told = likely([(one.question, one.paraphrased) for one in questions], "paraphrased")
    wrong = iter(
        likely([(one.question, text) for one in questions for text in one.perturbed], "perturbed")
    )
    perturbed = [[next(wrong) for _ in one.perturbed] for one in questions]
    probability = right
    if name in _CHOICES:
        probability = [a / (a + sum(b)) for a, b in zip(right, perturbed, strict=True)]
    encoded = encode(tokenizer, examples(tokenizer, questions), context)
    written = _written(model, tokenizer, encoded, f"{stage}: {name}, written", progress)
    return Asked(
        probability,
        [recall(text, one.answer) for text, one in zip(written, questions, strict=True)],
        [fmean(b) / a for a, b in zip(told, perturbed, strict=True)],
    )


def recall(written: str, wanted: str) -> float:
    """Recall of ROUGE-L (Lin, 2004) over lower-case words."""
    ours, theirs = (re.findall(r"[a-z0-9]+", text.lower()) for text in (written, wanted))
    if not theirs:
        return 0.0
    ids = {word: place for place, word in enumerate(dict.fromkeys(ours + theirs))}
    f1 = rouge_l([ids[word] for word in ours], [ids[word] for word in theirs])
    return f1 * (len(ours) + len(theirs)) / (2 * len(theirs))


def utility(asked: Mapping[str, Asked]) -> float:
    """Harmonic mean of the nine numbers; 0 where one of them is."""
    return float(harmonic_mean([n for name in (RETAIN, *_CHOICES) for n in asked[name].means()]))


def forget_quality(ours: Sequence[float], retained: Sequence[float]) -> float:
    """p of the two-sample KS test of truth ratios: large where nothing tells them apart."""
    return float(stats.ks_2samp(ours, retained).pvalue)


def _written(
    model: Any, tokenizer: Any, encoded: Sequence[Encoded], stage: str, progress: Progress
) -> list[str]:
    """What greedy decoding writes, at most as many tokens as the answer has."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, one in enumerate(encoded):
        groups[one.prompt_length].append(index)
    texts = [""] * len(encoded)
    done = 0
    for length, members in groups.items():
        for start in range(0, len(members), _BATCH):
            part = members[start : start + _BATCH]
            prompts = torch.tensor([encoded[i].input_ids[:length] for i in part])
            steps = max(len(encoded[i].completion_ids) for i in part)
            produced = greedy(model, prompts, steps, tokenizer.eos_token_id).tolist()
            end = tokenizer.eos_token_id
            for index, row in zip(part, produced, strict=True):
                ids = row[: len(encoded[index].completion_ids)]
                kept = ids[: ids.index(end)] if end in ids else ids
                texts[index] = tokenizer.decode(kept)
            done += len(part)
            progress(stage, done, len(encoded), {})
    return texts
