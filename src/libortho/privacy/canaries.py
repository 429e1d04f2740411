"""Canaries: secrets of known entropy behind unique prompts, and controls nobody trains on.

Members and controls are drawn from one generator stream and then assigned at random, so that
before training they are exchangeable; every member/control test rests on that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from libortho.errors import ConfigError
from libortho.privacy import names
from libortho.privacy.private_set import Example, encode_jsonl, write_jsonl

MAX_CANARIES = 5_000
FORBIDDEN_PART = 4
"""No substring of a secret of this many characters may stand in any prompt."""


@dataclass(frozen=True)
class Canary(Example):
    """A prompt and its secret.

    Attributes:
        completion: a space and the secret, so that the prompt tokenises as it does alone.
        secret_bits: entropy of the secret, log2 of the number of equally likely ones.
    """

    secret_bits: float

    @property
    def secret(self) -> str:
        """The secret without the leading space."""
        return self.completion[1:]


@dataclass(frozen=True)
class _Kind:
    """How one kind of canary is drawn; another kind is another entry of ``_KINDS``."""

    prompt: Callable[[np.random.Generator], tuple[str, str]]
    secret: Callable[[np.random.Generator], str]
    secret_bits: float


def _name_prompt(rng: np.random.Generator) -> tuple[str, str]:
    """A fictional person, and a prompt about them; the person makes the prompt unique."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    person = f"{pick(names.FIRST_NAMES)} {pick(names.LAST_NAME_HEADS)}{pick(names.LAST_NAME_TAILS)}"
    town = f"{pick(names.TOWN_HEADS)}{pick(names.TOWN_TAILS)}"
    return person, f"The {pick(names.SUBJECTS)} of {person} in {town} is"


_DIGITS = 20


def _digits(rng: np.random.Generator) -> str:
    return "".join(str(digit) for digit in rng.integers(10, size=_DIGITS))


_KINDS = {"digits": _Kind(_name_prompt, _digits, _DIGITS * math.log2(10))}


@dataclass(frozen=True)
class CanarySet:
    """Members, which are trained on, and as many controls, which never are."""

    members: tuple[Canary, ...]
    controls: tuple[Canary, ...]
    seed: int
    kind: str

    @property
    def sha256(self) -> str:
        """Of the canonical JSONL of members then controls."""
        return hashlib.sha256(encode_jsonl(map(asdict, self.members + self.controls))).hexdigest()

    def write(self, members: str | Path, controls: str | Path) -> tuple[str, str]:
        """Freeze both halves to JSONL files and return the sha256 of each."""
        return (
            write_jsonl(members, map(asdict, self.members)),
            write_jsonl(controls, map(asdict, self.controls)),
        )

    def candidates(self, canary: Canary, m: int) -> list[str]:
        """Draw completions of the canary's kind, uniform over its secrets.

        The draw depends on the seed, the canary's id and nothing else, so that a resumed run
        meets the same candidates.
        """
        word = int.from_bytes(hashlib.sha256(canary.id.encode()).digest()[:8], "big")
        rng = np.random.default_rng([self.seed, word])
        secret = _KINDS[self.kind].secret
        return [f" {secret(rng)}" for _ in range(m)]


def make_canaries(n: int, seed: int, kind: str = "digits") -> CanarySet:
    """Draw n members and n controls.

    Prompts are unique over both halves, differ in the person they name, and hold no
    ``FORBIDDEN_PART`` characters of any secret; secrets are unique.

    Args:
        n: members, and also controls, at most ``MAX_CANARIES``.
        seed: of a NumPy generator; the same seed gives the same set on every machine.
        kind: ``digits`` (20 random digits, 66.4 bits).

    Raises:
        ConfigError: for an unknown kind, or n or seed out of range.
    """
    if kind not in _KINDS:
        raise ConfigError(f"unknown kind of canary {kind!r}; known: {', '.join(sorted(_KINDS))}")
    if not 1 <= n <= MAX_CANARIES:
        raise ConfigError(f"the number of canaries must lie in 1..{MAX_CANARIES}, found {n}")
    if seed < 0:
        raise ConfigError(f"the seed of the canaries must not be negative, found {seed}")
    rng = np.random.default_rng(seed)
    recipe = _KINDS[kind]
    prompts: dict[str, str] = {}
    while len(prompts) < 2 * n:
        person, prompt = recipe.prompt(rng)
        prompts.setdefault(person, prompt)
    taken = {part for prompt in prompts.values() for part in _parts(prompt)}
    secrets: dict[str, None] = {}
    while len(secrets) < 2 * n:
        secret = recipe.secret(rng)
        if taken.isdisjoint(_parts(secret)):
            secrets.setdefault(secret)
    pairs = list(zip(prompts.values(), secrets, strict=True))
    order = rng.permutation(2 * n)

    def half(role: str, indices: Sequence[int]) -> tuple[Canary, ...]:
        return tuple(
            Canary(f"{role}-{i:04d}", pairs[j][0], f" {pairs[j][1]}", recipe.secret_bits)
            for i, j in enumerate(indices)
        )

    return CanarySet(
        half("member", order[:n].tolist()), half("control", order[n:].tolist()), seed, kind
    )


def _parts(text: str) -> set[str]:
    return {text[i : i + FORBIDDEN_PART] for i in range(len(text) - FORBIDDEN_PART + 1)}
