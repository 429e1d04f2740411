"""(n, p)-discoverable extraction (Hayes et al., arXiv 2410.19482).

A sampler emits the secret z with probability p_z; asked n times it emits it at least once with
probability 1 - (1 - p_z)^n. A secret is (n, p)-discoverable where that is at least p. The sampler
is temperature 1 among the 40 likeliest tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from libortho.privacy.attacks.subject import Outcome, Subject, median, proportion, share_test

QUERIES = (1, 100, 10_000)
CHANCE = 0.5
UNREACHABLE = 300.0
"""log10 of the queries a secret outside the sampler's reach is said to need: a lower bound."""


def run(subject: Subject) -> Outcome:
    """Share discoverable within n queries at p = 50%; median log10 of the queries needed."""
    needed = {
        name: [log10_queries(float(one.sampled.sum()), CHANCE) for one in half.tokens]
        for name, half in (("members", subject.members), ("controls", subject.controls))
    }
    within = {n: _within(needed["members"], n) for n in QUERIES}
    figures = {f"within {n:,} queries": proportion(flags) for n, flags in within.items()}
    figures["log10 queries"] = median(needed["members"], subject.seed)
    figures["log10 queries, controls"] = median(needed["controls"], subject.seed)
    most = QUERIES[-1]
    test = share_test("discoverable", within[most], _within(needed["controls"], most))
    extracted = {f"{most:,} samples": sum(within[most])}
    return Outcome(figures, needed, (test,), extracted)


def _within(needed: Sequence[float], queries: int) -> list[bool]:
    return [one <= math.log10(queries) for one in needed]


def log10_queries(log_p: float, chance: float) -> float:
    """log10 of the fewest samples that emit a secret with probability ``chance`` or more.

    n = ceil(log(1 - chance) / log(1 - p_z)), at least 1, without underflow for tiny p_z.

    Args:
        log_p: log p_z; -inf where the sampler never emits it.
    """
    if log_p >= math.log(chance):
        return 0.0
    if log_p > -30:
        exact = math.log1p(-chance) / math.log1p(-math.exp(log_p))
        # Rounding must not ask for one more where the quotient is whole.
        return math.log10(max(1, math.ceil(exact - 1e-9)))
    # log(1 - p) = -p to double precision here.
    reach = (math.log(-math.log1p(-chance)) - log_p) / math.log(10)
    return min(reach, UNREACHABLE)
