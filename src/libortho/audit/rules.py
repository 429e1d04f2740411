"""What makes an audit VOID, and what makes it FAIL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from libortho.audit.attempt import Scored, Tested
from libortho.audit.data import Data
from libortho.audit.target import Target
from libortho.experiments.rules import RECALL, indistinguishable
from libortho.experiments.verdict import Check, at_least, exactly
from libortho.privacy.attacks import ATTACKS
from libortho.privacy.statistics import FamilyResult, judge_family

FEWEST = 20


def preconditions(
    target: Target, data: Data, scored: Sequence[Scored], positive: float | None
) -> list[Check]:
    """Without these an audit shows nothing: enough rows, and proof that what is known is found.

    The proof is a state that recites 95% of the data: that which opens the most of the private
    streams, or, for a model without any, a positive control.

    Args:
        positive: recall of the positive control.
    """
    found = [
        at_least("rows the model was trained on", len(data.members), FEWEST, "VOID"),
        at_least("controls", len(data.controls), FEWEST, "VOID"),
    ]
    if target.guarantees:
        widest = scored[-1]
        found.append(at_least(f"{widest.state.label}: recall", widest.recall, RECALL, "VOID"))
    elif positive is not None:
        found.append(at_least("positive control: recall", positive, RECALL, "VOID"))
    return found


def findings(
    target: Target, tested: Sequence[Tested], *, canaries: bool, listed: Sequence[str]
) -> tuple[list[Check], FamilyResult]:
    """What must not be found in the states that open the least, and the family of tests.

    FAIL: a test of the family tells members from controls, or, of canaries, which nobody can
    guess, a secret came out.

    Raises:
        ConfigError: the tests that were run are not those listed beforehand.
    """
    found: list[Check] = []
    judged = [one for one in tested if one.state in target.judged]
    if canaries:
        for one in judged:
            for name, outcome in one.outcomes.items():
                for way, count in outcome.extracted.items():
                    rule = f"{one.state.label}: {ATTACKS[name].title}, {way}: secrets extracted"
                    found.append(exactly(rule, count, 0, "FAIL"))
    tests = [
        replace(test, name=f"{one.state.label}/{test.name}")
        for one in judged
        for outcome in one.outcomes.values()
        for test in outcome.tests
    ]
    result = judge_family(listed, tests)
    return found + indistinguishable(result.adjusted), result


def power(
    target: Target, scored: Sequence[Scored], positive: float | None, found: Sequence[Check]
) -> list[Check]:
    """Silence of a model without private streams or a positive control shows nothing: VOID.

    A leak needs no such proof: attacks that found one have power.
    """
    if target.guarantees or positive is not None or not all(check.held for check in found):
        return []
    one = scored[-1]
    name = f"{one.state.label}: recall (no --positive was given)"
    return [at_least(name, one.recall, RECALL, "VOID")]
