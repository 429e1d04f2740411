"""Greedy extraction with forced token ids, and how far it is from succeeding.

Extraction strength (Carlini et al., arXiv 2202.07646, as used by open-unlearning) is 1 - k/L, with
k the fewest of a completion's L tokens that must be given before greedy decoding recites the rest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from libortho.privacy.attacks.subject import Outcome, Subject, mean, proportion, share_test


def run(subject: Subject) -> Outcome:
    """Recited whole; share of tokens whose argmax is true; extraction strength."""
    members, controls = subject.members, subject.controls
    return Outcome(
        {
            "recited": proportion(members.exact),
            "recited, controls": proportion(controls.exact),
            "tokens right": mean([float(t.hit.mean()) for t in members.tokens], subject.seed),
            "strength": mean([strength(t.hit) for t in members.tokens], subject.seed),
            "NLL": mean(members.nll, subject.seed),
            "NLL, controls": mean(controls.nll, subject.seed),
        },
        {
            "members": [int(one) for one in members.exact],
            "controls": [int(one) for one in controls.exact],
        },
        (share_test("greedy", members.exact, controls.exact),),
        {"whole prompt": sum(members.exact)},
    )


def strength(hit: npt.NDArray[np.bool_]) -> float:
    """1 - k/L from the flags of one completion's tokens."""
    missed = np.flatnonzero(~hit)
    return 1.0 - (int(missed[-1]) + 1 if len(missed) else 0) / len(hit)
