"""The metrics of TOFU (Maini et al. 2024, arXiv 2401.06121, §2.2), over one model's answers.

probability     P(a|q)^(1/|a|); where a set asks for what a model knew before, the share of the
                right answer among right and wrong ones
ROUGE-L         recall of the longest common subsequence, over words, of the greedy answer
truth ratio     R = mean over wrong answers â of P(â|q)^(1/|â|), over P(ã|q)^(1/|ã|) of the
                paraphrase ã
forget quality  p of a two-sample Kolmogorov–Smirnov test between the truth ratios on the forget
                set of a model and of one that never saw it: high is good
model utility   harmonic mean of probability, ROUGE-L and max(0, 1 − R) over every other set
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from libortho.errors import ConfigError
from libortho.privacy.attacks.near_verbatim import rouge_l
from libortho.privacy.encode import encode
from libortho.privacy.greedy import greedy
from libortho.privacy.questions import FORGET, RETAIN, Question
from libortho.privacy.score import score
from libortho.privacy.statistics import Estimate, Interval
from libortho.progress import Progress, silent

_BATCH = 64
_RESAMPLES = 2000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Answers:
    """What one model answers to one set; one value a question each.

    Attributes:
        probability: in [0, 1].
        rouge: recall in [0, 1].
        truth_ratio: above 0; below 1 where right answers are likelier than wrong ones.
    """

    probability: list[float]
    rouge: list[float]
    truth_ratio: list[float]

    def truth(self, name: str) -> list[float]:
        """Truth ratios as they are averaged: min(R, 1/R) on the forget set, else max(0, 1 − R)."""
        if name == FORGET:
            return [min(one, 1 / one) for one in self.truth_ratio]
        return [max(0.0, 1 - one) for one in self.truth_ratio]

    def only(self, questions: Sequence[int]) -> Answers:
        """The answers to some of the questions, by index."""
        columns = (self.probability, self.rouge, self.truth_ratio)
        return Answers(*([values[index] for index in questions] for values in columns))

    def metrics(self, name: str) -> tuple[list[float], list[float], list[float]]:
        """The three columns that a set contributes."""
        return self.probability, self.rouge, self.truth(name)


@dataclass(frozen=True)
class Quality:
    """A forget quality: p, and the largest distance of the two distributions, in [0, 1]."""

    p: float
    distance: float


def answers(
    model: Any,
    tokenizer: Any,
    probes: Mapping[str, Sequence[Question]],
    *,
    stage: str = "questions",
    progress: Progress = silent,
) -> dict[str, Answers]:
    """Ask a model every set of questions.

    Greedy decoding writes as many tokens as the right answer has.

    Args:
        model: a transformers causal LM; the caller sets alpha.
        probes: by set; ``forget`` and ``retain`` were trained on, any other was known before.
    """
    found = {}
    for name, rows in probes.items():
        told = f"{stage}: {name}"
        right = _likely(model, tokenizer, [(row, row.answer) for row in rows], told, progress)
        other = _likely(model, tokenizer, [(row, row.paraphrased) for row in rows], told, progress)
        pairs = [(row, text) for row in rows for text in row.perturbed]
        wrong = iter(_likely(model, tokenizer, pairs, told, progress))
        perturbed = [[next(wrong) for _ in row.perturbed] for row in rows]
        found[name] = Answers(
            right
            if name in (FORGET, RETAIN)
            else [one / (one + sum(rest)) for one, rest in zip(right, perturbed, strict=True)],
            _rouge(model, tokenizer, rows, told, progress),
            [truth_ratio(one, rest) for one, rest in zip(other, perturbed, strict=True)],
        )
    return found


def truth_ratio(paraphrased: float, perturbed: Sequence[float]) -> float:
    """R of one question, from probabilities that are normalised by length."""
    return fmean(perturbed) / paraphrased


def rouge_recall(written: str, wanted: str) -> float:
    """Length of the longest common subsequence over that of ``wanted``, in words, case folded."""
    ours, theirs = (_WORD.findall(text.lower()) for text in (written, wanted))
    index = {word: number for number, word in enumerate(dict.fromkeys([*ours, *theirs]))}
    ids = [[index[word] for word in words] for words in (ours, theirs)]
    # F1 = 2·LCS / (|written| + |wanted|).
    return rouge_l(*ids) * (len(ours) + len(theirs)) / (2 * len(theirs)) if theirs else 0.0


def forget_quality(model: Answers, retrained: Answers) -> Quality:
    """How well the truth ratios on the forget set pass for those of a model that never saw it.

    Args:
        model: answers to the forget set of the model that is judged.
        retrained: of the model that was trained without the forget set.
    """
    if len(model.truth_ratio) != len(retrained.truth_ratio):
        raise ConfigError(
            f"forget quality compares answers to the same questions: {len(model.truth_ratio)} and "
            f"{len(retrained.truth_ratio)}"
        )
    found = stats.ks_2samp(model.truth_ratio, retrained.truth_ratio)
    return Quality(float(found.pvalue), float(found.statistic))


def model_utility(found: Mapping[str, Answers], seed: int) -> Estimate:
    """Harmonic mean over every set but the forget set; questions are resampled within each."""
    rng = np.random.default_rng(seed)
    means, samples = [], []
    for name, one in found.items():
        if name == FORGET:
            continue
        columns = np.asarray(one.metrics(name))
        means.append(columns.mean(axis=1))
        chosen = rng.integers(columns.shape[1], size=(_RESAMPLES, columns.shape[1]))
        samples.append(columns[:, chosen].mean(axis=2))
    low, high = np.quantile(_harmonic(np.concatenate(samples)), [0.025, 0.975])
    return Estimate(
        float(_harmonic(np.concatenate(means))), Interval(float(low), float(high), confidence=0.95)
    )


def _harmonic(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over the first dimension; 0 where any value is: the limit of the harmonic mean."""
    with np.errstate(divide="ignore"):
        return np.asarray(len(values) / (1 / values).sum(axis=0))


def _likely(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[Question, str]],
    stage: str,
    progress: Progress,
) -> list[float]:
    """P(text | question)^(1/tokens) of each pair."""
    examples = [row.example(str(number), text) for number, (row, text) in enumerate(pairs)]
    scores = score(model, encode(tokenizer, examples), stage=stage, progress=progress)
    return [math.exp(-one.nll / one.tokens) for one in scores]


def _rouge(
    model: Any, tokenizer: Any, rows: Sequence[Question], stage: str, progress: Progress
) -> list[float]:
    encoded = encode(tokenizer, [row.example(str(number)) for number, row in enumerate(rows)])
    # Prompts of equal length share a batch, so that no padding can change a result.
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, one in enumerate(encoded):
        by_length[one.prompt_length].append(index)
    found = [0.0] * len(rows)
    done = 0
    for length, group in by_length.items():
        for start in range(0, len(group), _BATCH):
            part = group[start : start + _BATCH]
            prompts = torch.tensor([encoded[index].input_ids[:length] for index in part])
            steps = [len(encoded[index].completion_ids) for index in part]
            produced = greedy(model, prompts, max(steps)).tolist()
            for index, ids, count in zip(part, produced, steps, strict=True):
                found[index] = rouge_recall(tokenizer.decode(ids[:count]), rows[index].answer)
            done += len(part)
            progress(f"{stage}, written", done, len(rows), {})
    return found
