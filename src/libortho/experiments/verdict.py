"""PASS, FAIL or VOID as the sum of checks, each with the value found and its limit.

VOID: the run shows nothing. FAIL: it shows that a promise is broken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import JsonValue

from libortho.records import Verdict

MEANING: Mapping[Verdict, str] = {"VOID": "the run shows nothing", "FAIL": "a promise is broken"}
"""What decides, in this order, and what it means; closes the sentence of :func:`judge`."""


@dataclass(frozen=True)
class Check:
    """One rule applied once.

    Attributes:
        name: way and rule.
        held: whether it was met.
        decides: what a failure makes of the run.
        found: the value found.
        limit: what it was held against, in words.
    """

    name: str
    held: bool
    decides: Literal["FAIL", "VOID"]
    found: float | int | str
    limit: str


def at_least(name: str, found: float, limit: float, decides: Literal["FAIL", "VOID"]) -> Check:
    """found ≥ limit."""
    return Check(name, found >= limit, decides, found, f"≥ {limit:g}")


def at_most(name: str, found: float, limit: float, decides: Literal["FAIL", "VOID"]) -> Check:
    """found ≤ limit."""
    return Check(name, found <= limit, decides, found, f"≤ {limit:g}")


def exactly(
    name: str, found: float | int | str, wanted: object, decides: Literal["FAIL", "VOID"]
) -> Check:
    """found = wanted."""
    return Check(name, found == wanted, decides, found, f"= {wanted}")


def judge(checks: Sequence[Check]) -> tuple[Verdict, str]:
    """The verdict and one sentence that says what decided it."""
    for verdict, meaning in MEANING.items():
        broken = [check for check in checks if check.decides == verdict and not check.held]
        if broken:
            listed = "; ".join(f"{c.name} is {_short(c.found)}, wanted {c.limit}" for c in broken)
            return verdict, f"{listed}: {meaning}."
    return "PASS", f"all {len(checks)} checks held."


def as_json(checks: Sequence[Check]) -> list[JsonValue]:
    """The checks for a record."""
    return [asdict(check) for check in checks]


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
