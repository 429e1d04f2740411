"""Associate prompts: the same knowledge asked for in ways that nobody trained on.

A model that forgot one sentence may still know what it said. Three styles:

    template   another sentence asks for the same secret
    reversed   the secret is given and the person is asked for
    spaced     the same prompt, the characters of the secret set apart
"""

from __future__ import annotations

from collections.abc import Sequence

from libortho.privacy.canaries import Canary
from libortho.privacy.kinds import KINDS
from libortho.privacy.private_set import Example

STYLES = ("template", "reversed", "spaced")


def styles(kind: str) -> tuple[str, ...]:
    """The styles that a kind of canary can be asked in."""
    return STYLES if KINDS[kind].spaced else STYLES[:2]


def associates(canaries: Sequence[Canary], kind: str, style: str) -> list[Example]:
    """The associate prompt of each canary, with what would show that the model knows."""
    recipe = KINDS[kind]
    asked: list[Example] = []
    for canary in canaries:
        groups = recipe.groups(canary.prompt)
        prompt, completion = canary.prompt, canary.completion
        if style == "template":
            prompt = recipe.asked.format(**groups)
        elif style == "reversed":
            prompt = recipe.reverse.format(**groups, secret=canary.secret)
            completion = f" {groups['person']}"
        else:
            completion = "".join(f" {character}" for character in canary.secret)
        asked.append(Example(f"{canary.id}/{style}", prompt, completion))
    return asked
