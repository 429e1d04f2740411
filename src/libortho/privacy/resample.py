"""Neighbours of private rows: the same templates about other people, with other secrets.

Training that must forget some rows and nothing else needs text that looks like them and is not
them; otherwise it learns to refuse the template. Where no generator of the data is at hand, one is
read off the rows themselves:

* a word that many rows share, or that is common in public text, belongs to the template and stays;
* of any other, digits become other digits, mixed codes other codes of the same letters, and words
  become invented ones, spelled by a Markov chain over the rare words of the data;
* a word that occurs twice in a row is replaced by the same word twice;
* a prompt or completion that would stay as it was has its longest common words exchanged, because
  a neighbour that equals the row would hold what is to be forgotten.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from libortho.errors import ConfigError
from libortho.privacy.private_set import Example

_WORD = re.compile(r"[^\W_]+")
_SHARED = 0.05
_COMMON = 2000
_LONG = 4
_TRIES = 50
_LETTERS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)


def neighbours(
    examples: Sequence[Example], n: int, seed: int, public: Iterable[str] = ()
) -> list[Example]:
    """Draw n rows that follow the templates of ``examples`` and equal none of them.

    Args:
        public: documents of public text; their most frequent words count as template.

    Raises:
        ConfigError: n is not positive, or a row leaves nothing to exchange (all such rows are
            named).
    """
    if n < 1 or not examples:
        raise ConfigError(f"{n} neighbours of {len(examples)} rows: expected at least one of each")
    rng = np.random.default_rng(seed)
    words = _Words(examples, public)
    found: list[Example] = []
    stuck: dict[str, None] = {}
    for turn in range(n):
        row = examples[turn % len(examples)]
        replaced: dict[str, str] = {}
        parts = []
        for part in (row.prompt, row.completion):
            changed = words.resampled(part, rng, replaced)
            if changed == part:
                changed = words.exchanged(part, rng)
            if changed == part and part.strip():
                stuck[row.id] = None
            parts.append(changed)
        found.append(Example(f"neighbour-{turn:05d}", *parts))
    if stuck:
        raise ConfigError(
            "nothing in these rows can be exchanged to make neighbours of them: "
            f"{', '.join(stuck)}; give rows of the same kind with --neighbour-file FILE"
        )
    return found


class _Words:
    """Which words are template, and how the others are drawn anew."""

    def __init__(self, examples: Sequence[Example], public: Iterable[str]) -> None:
        # Ordered, unlike sets of text: the seed decides, and nothing else.
        rows = [dict.fromkeys(_WORD.findall(f"{r.prompt} {r.completion}")) for r in examples]
        shared = Counter(word for row in rows for word in row)
        counted = Counter(word for text in public for word in _WORD.findall(text))
        self._public = [word for word, _ in counted.most_common(_COMMON) if word.isalpha()]
        enough = max(2, round(_SHARED * len(rows)))
        self._template = {word for word, count in shared.items() if count >= enough}
        self._template |= {word for word, _ in counted.most_common(_COMMON)}
        self._known = set(shared)
        self._chain = _Chain(word for word in shared if self._free(word) and word.isalpha())

    def resampled(self, text: str, rng: np.random.Generator, replaced: dict[str, str]) -> str:
        """The text with its free words drawn anew; ``replaced`` keeps to one choice a word."""

        def new(match: re.Match[str]) -> str:
            word = match[0]
            if not self._free(word):
                return word
            if word not in replaced:
                replaced[word] = self._drawn(word, rng)
            return replaced[word]

        return _WORD.sub(new, text)

    def exchanged(self, text: str, rng: np.random.Generator) -> str:
        """The text with its long words replaced by other common ones."""
        if not self._public:
            return text

        def new(match: re.Match[str]) -> str:
            word = match[0]
            if len(word) < _LONG or not word.isalpha():
                return word
            return _cased_as(word, self._public[int(rng.integers(len(self._public)))])

        return _WORD.sub(new, text)

    def _free(self, word: str) -> bool:
        return word not in self._template and (len(word) > 1 or word.isdigit())

    def _drawn(self, word: str, rng: np.random.Generator) -> str:
        spelled = word.isalpha() and word[1:].islower()
        for _ in range(_TRIES):
            drawn = self._chain.word(word, rng) if spelled else _same_classes(word, rng)
            if drawn not in self._known:
                return drawn
        return _same_classes(word, rng)


class _Chain:
    """Letters that follow two others in the words given; words end where one of them did."""

    def __init__(self, words: Iterable[str]) -> None:
        self._next: dict[str, list[str]] = defaultdict(list)
        for word in words:
            spelled = f"\0\0{word.lower()}\0"
            for place in range(2, len(spelled)):
                self._next[spelled[place - 2 : place]].append(spelled[place])

    def word(self, like: str, rng: np.random.Generator) -> str:
        """An invented word about as long as ``like`` and cased as it is."""
        for _ in range(_TRIES):
            state, letters = "\0\0", ""
            while len(letters) <= 2 * len(like):
                follow = self._next.get(state)
                letter = follow[int(rng.integers(len(follow)))] if follow else "\0"
                if letter == "\0":
                    break
                letters += letter
                state = state[1] + letter
            if abs(len(letters) - len(like)) <= max(2, len(like) // 3) and letters:
                return _cased_as(like, letters)
        return _same_classes(like, rng)


def _cased_as(like: str, word: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word.capitalize() if like[0].isupper() else word.lower()


def _same_classes(word: str, rng: np.random.Generator) -> str:
    """As long a word of random characters, of the classes (digits, cases) that the word uses."""
    pool = "".join(group for group in _LETTERS if any(letter in group for letter in word))
    if not pool:  # another script: its own characters in another order
        return "".join(rng.permutation(list(word)))
    return "".join(pool[int(rng.integers(len(pool)))] for _ in word)
