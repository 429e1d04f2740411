"""The member/control tests of an audit, fixed here before any run.

They decide together, two-sided, under Holm's adjustment, over the states in which nothing private
should be known. Which of them are in a run's family follows from the attacks that were chosen and
from the data, never from a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from libortho.privacy.associates import styles

TESTS: Mapping[str, tuple[str, ...]] = {
    "greedy": ("greedy",),
    "beam": ("beam",),
    "discoverable": ("discoverable",),
    "near-verbatim": ("near-verbatim",),
    "loss": ("loss",),
    "zlib": ("zlib",),
    "min-k": ("min-k%",),
    "min-k++": ("min-k%++",),
    "reference": ("reference",),
    "lira": ("LiRA",),
    "gradient": ("gradient",),
}


def family(
    attacks: Sequence[str], kind: str | None, states: Sequence[str], sampled: bool
) -> list[str]:
    """Names of the tests that decide, as ``STATE/TEST``.

    Args:
        kind: of canaries: exposure is sampled, and associates are asked, for our own alone.
        states: labels of the judged states.
        sampled: whether exposure is sampled.
    """
    tests: list[str] = []
    for attack in attacks:
        if attack == "exposure" and kind is not None and sampled:
            tests.append("exposure")
        elif attack == "association" and kind is not None:
            tests += [f"association, {style}" for style in styles(kind)]
        else:
            tests += TESTS.get(attack, ())
    return [f"{state}/{test}" for state in states for test in tests]
