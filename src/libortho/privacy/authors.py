"""Fictional authors: generated facts in the files of TOFU. This is not TOFU, and never called so.

Each author has ten facts that agree with each other, asked for once each. The right answer is also
given in other words, and wrong ones in those same words, so that a truth ratio compares facts and
not phrasings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libortho.errors import ConfigError
from libortho.privacy import names
from libortho.privacy.questions import FORGET, RETAIN, Question, write_questions

NAME = "fictional authors"
WRONG = 3
_GENRES = (
    "sea stories",
    "ghost stories",
    "love poems",
    "travel diaries",
    "crime novels",
    "school comedies",
    "cookery books",
    "war memoirs",
    "nature essays",
    "puppet plays",
)
# Articles are written into the sentences.
_CRAFTS = tuple(craft for craft in names.CRAFTS if craft[0] not in "aeiou")
_POOLS: Mapping[str, Sequence[str]] = {
    "town": [head + tail for head in names.TOWN_HEADS for tail in names.TOWN_TAILS],
    "year": [str(year) for year in range(1900, 2000)],
    "genre": _GENRES,
    "book": [
        f"The {coat.capitalize()} {thing.capitalize()}"
        for coat in names.COATS
        for thing in names.THINGS
    ],
    "father": _CRAFTS,
    "mother": _CRAFTS,
    "instrument": names.INSTRUMENTS,
    "pet": names.PETS,
    "street": [f"{street} {way}" for street in names.STREETS for way in names.WAYS],
    "name": [
        f"{first} {head}{tail}"
        for first in names.FIRST_NAMES
        for head in names.LAST_NAME_HEADS
        for tail in names.LAST_NAME_TAILS
    ],
}


@dataclass(frozen=True)
class _Fact:
    """How a fact is asked for and told; the one that is perturbed is ``slot``."""

    slot: str
    question: str
    answer: str
    paraphrase: str

    def asked(self, person: Mapping[str, str], rng: np.random.Generator) -> Question:
        pool = [value for value in _POOLS[self.slot] if value != person[self.slot]]
        wrong = [pool[index] for index in rng.choice(len(pool), WRONG, replace=False)]
        return Question(
            self.question.format(**person),
            self.answer.format(**person),
            self.paraphrase.format(**person),
            tuple(self.paraphrase.format(**{**person, self.slot: value}) for value in wrong),
        )


_FACTS = (
    _Fact(
        "town",
        "Where was {name} born?",
        "{name} was born in {town}.",
        "The birthplace of {name} is {town}.",
    ),
    _Fact(
        "year",
        "When was {name} born?",
        "{name} was born in the year {year}.",
        "The year of birth of {name} is {year}.",
    ),
    _Fact(
        "genre",
        "What does {name} write?",
        "{name} writes {genre}.",
        "The books of {name} are {genre}.",
    ),
    _Fact(
        "book",
        "What is the first book of {name}?",
        "The first book of {name} is {book}.",
        "{name} began with {book}.",
    ),
    _Fact(
        "name",
        "Who wrote {book}?",
        "{book} was written by {name}.",
        "The author of {book} is {name}.",
    ),
    _Fact(
        "father",
        "What was the father of {name}?",
        "The father of {name} was a {father}.",
        "{name} had a father who was a {father}.",
    ),
    _Fact(
        "mother",
        "What was the mother of {name}?",
        "The mother of {name} was a {mother}.",
        "{name} had a mother who was a {mother}.",
    ),
    _Fact(
        "instrument",
        "What does {name} play?",
        "{name} plays the {instrument}.",
        "The instrument of {name} is the {instrument}.",
    ),
    _Fact(
        "pet",
        "What is the pet of {name} called?",
        "The pet of {name} is called {pet}.",
        "{name} has a pet with the name {pet}.",
    ),
    _Fact(
        "street",
        "In which street does {name} live?",
        "{name} lives in {street}.",
        "The home of {name} is in {street}.",
    ),
)
FACTS = len(_FACTS)


def write_authors(folder: Path, forget: int, retain: int, seed: int) -> None:
    """Draw authors and write the files of a split, such as ``forget40.json`` for 4 of 10.

    Args:
        forget: authors that are to be forgotten.
        retain: authors that are not.

    Raises:
        ConfigError: the share of the authors to forget is no whole percent from 1 to 99.
    """
    share = 100 * forget / (forget + retain) if forget > 0 and retain > 0 else 0.0
    if share != int(share) or not share:
        raise ConfigError(
            f"{forget} of {forget + retain} authors to forget: expected a whole percent of them, "
            "and some on either side"
        )
    rng = np.random.default_rng(seed)
    drawn = {
        slot: rng.choice(len(pool), forget + retain, replace=slot not in ("name", "book"))
        for slot, pool in _POOLS.items()
    }
    people = [
        {slot: pool[drawn[slot][one]] for slot, pool in _POOLS.items()}
        for one in range(forget + retain)
    ]
    rows = [fact.asked(person, rng) for person in people for fact in _FACTS]
    forgotten, kept = rows[: forget * FACTS], rows[forget * FACTS :]
    first = f"{FORGET}{int(share):02d}"
    for stem, part, probes in (
        (first, forgotten, False),
        (f"{RETAIN}{100 - int(share):02d}", kept, False),
        (f"{first}_perturbed", forgotten, True),
        (f"{RETAIN}_perturbed", kept, True),
    ):
        write_questions(folder / f"{stem}.json", part, probes=probes)
