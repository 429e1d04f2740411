"""The rows to forget, divided among tenants."""

from __future__ import annotations

from dataclasses import dataclass

from libortho.errors import ConfigError
from libortho.privacy.questions import FORGET, PROBES, QuestionSets


@dataclass(frozen=True)
class Part:
    """What belongs to one tenant.

    Attributes:
        rows: of training, by index into the rows to forget.
        questions: that ask for them, by index into the probes of the forget set.
    """

    rows: range
    questions: tuple[int, ...]


def parts(sets: QuestionSets, tenants: int) -> dict[str, Part]:
    """Give each tenant an equal stretch of the rows to forget; an author's rows stand together.

    Raises:
        ConfigError: tenants without a question among the probes; all of them are named.
    """
    found = {}
    for number in range(tenants):
        start, end = (one * len(sets.forget) // tenants for one in (number, number + 1))
        own = {row.question for row in sets.forget[start:end]}
        asked = (i for i, probe in enumerate(sets.probes[FORGET]) if probe.question in own)
        found[f"tenant-{number + 1}"] = Part(range(start, end), tuple(asked))
    silent = [name for name, part in found.items() if not part.questions]
    if silent:
        raise ConfigError(
            f"{tenants} tenants share the rows of {sets.name}.json, but no question asked is of "
            f"{', '.join(silent)}: expected the questions of {sets.name}{PROBES} to stand in "
            f"{sets.name}.json too, some in each of {tenants} equal parts"
        )
    return found
