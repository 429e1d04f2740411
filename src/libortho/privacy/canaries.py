"""Canaries: secrets of known entropy behind unique prompts, and controls nobody trains on.

Members and controls are drawn from one generator stream and then assigned at random, so that
before training they are exchangeable; every member/control test rests on that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from libortho.errors import ConfigError
from libortho.privacy.kinds import KINDS, Kind
from libortho.privacy.private_set import Example, encode_jsonl, write_jsonl

MAX_CANARIES = 5_000
_NEIGHBOURS, _CONTROLS = 1, 2


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
        """As :func:`candidates`, with the set's own kind and seed."""
        return candidates(canary, m, seed=self.seed, kind=self.kind)

    def neighbours(self, n: int) -> tuple[Canary, ...]:
        """Draw n canaries of the same templates that are neither members nor controls.

        Training that must not touch the template itself (forgetting, above all) keeps the model's
        behaviour on them, while controls stay unseen by every training.

        Raises:
            ConfigError: for n out of range.
        """
        rng = np.random.default_rng([self.seed, _NEIGHBOURS])
        return _apart("neighbour", n, rng, self.kind, self.members + self.controls)


def make_canaries(n: int, seed: int, kind: str = "digits") -> CanarySet:
    """Draw n members and n controls.

    Prompts are unique over both halves, differ in the person they name, and share no part with
    any secret (``Kind.parts``); secrets are unique.

    Args:
        n: members, and also controls, at most ``MAX_CANARIES``.
        seed: of a NumPy generator; the same seed gives the same set on every machine.
        kind: ``digits`` (20 random digits, 66.4 bits), ``base62`` (16 random characters, 95.3
            bits) or ``bios`` (a fictional life in one sentence, 73 bits).

    Raises:
        ConfigError: for an unknown kind, or n or seed out of range.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of canary {kind!r}; known: {', '.join(sorted(KINDS))}")
    _check_count(n)
    if seed < 0:
        raise ConfigError(f"the seed of the canaries must not be negative, found {seed}")
    rng = np.random.default_rng(seed)
    recipe = KINDS[kind]
    pairs = _draw(recipe, rng, 2 * n)
    order = rng.permutation(2 * n)

    def half(role: str, indices: Sequence[int]) -> tuple[Canary, ...]:
        return _named(role, [pairs[j] for j in indices], recipe)

    return CanarySet(
        half("member", order[:n].tolist()), half("control", order[n:].tolist()), seed, kind
    )


def make_controls(members: Sequence[Canary], n: int, seed: int, kind: str) -> tuple[Canary, ...]:
    """Draw n fresh controls for members whose own controls are not at hand.

    They follow the members' law and share no person and no secret with them. The canaries that
    were once drawn as the members' controls are not drawn again on purpose, nor avoided.

    Raises:
        ConfigError: for n out of range.
    """
    rng = np.random.default_rng([seed, _CONTROLS])
    return _apart("control", n, rng, kind, members)


def candidates(canary: Canary, m: int, *, seed: int, kind: str) -> list[str]:
    """Draw m completions of a kind, uniform over its secrets.

    The draw depends on the seed, the canary's id and nothing else, so that a resumed run meets
    the same candidates.
    """
    word = int.from_bytes(hashlib.sha256(canary.id.encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, word])
    return [f" {KINDS[kind].secret(rng)}" for _ in range(m)]


def kind_of(examples: Sequence[Example]) -> str | None:
    """The kind that all examples are of, or None where they are not our canaries."""
    for name, kind in KINDS.items():
        if examples and all(kind.fits(one.prompt, one.completion) for one in examples):
            return name
    return None


def as_canaries(examples: Sequence[Example], kind: str) -> tuple[Canary, ...]:
    """Rows of a file, of a kind that :func:`kind_of` told, as canaries."""
    bits = KINDS[kind].secret_bits
    return tuple(Canary(one.id, one.prompt, one.completion, bits) for one in examples)


def _apart(
    role: str, n: int, rng: np.random.Generator, kind: str, known: Sequence[Canary]
) -> tuple[Canary, ...]:
    _check_count(n)
    return _named(role, _draw(KINDS[kind], rng, n, known), KINDS[kind])


def _draw(
    recipe: Kind, rng: np.random.Generator, count: int, known: Iterable[Canary] = ()
) -> list[tuple[str, str]]:
    """Pairs of prompt and secret: of other persons and secrets than the known ones."""
    persons = {recipe.person(one.prompt) for one in known}
    secrets_known = {one.secret for one in known}
    prompts: dict[str, str] = {}
    while len(prompts) < count:
        person, prompt = recipe.prompt(rng)
        if person not in persons:
            prompts.setdefault(person, prompt)
    everywhere = [*prompts.values(), *(one.prompt for one in known)]
    taken = {part for prompt in everywhere for part in recipe.parts(prompt)}
    secrets: dict[str, None] = {}
    while len(secrets) < count:
        secret = recipe.secret(rng)
        if taken.isdisjoint(recipe.parts(secret)) and secret not in secrets_known:
            secrets.setdefault(secret)
    return list(zip(prompts.values(), secrets, strict=True))


def _named(role: str, pairs: Sequence[tuple[str, str]], recipe: Kind) -> tuple[Canary, ...]:
    return tuple(
        Canary(f"{role}-{i:04d}", prompt, f" {secret}", recipe.secret_bits)
        for i, (prompt, secret) in enumerate(pairs)
    )


def _check_count(n: int) -> None:
    if not 1 <= n <= MAX_CANARIES:
        raise ConfigError(f"the number of canaries must lie in 1..{MAX_CANARIES}, found {n}")
