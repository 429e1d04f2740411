"""The family of member/control tests at α = 0, and the seeds: fixed here before any run.

At α = 0 the exact ways are one and the same model, the never-exposed base, so each record has one
such family, over that base. Both tests are two-sided; Holm's adjustment is over the family of a
record, and an adjusted p ≤ .05 is a FAIL. Exposure is sampled against 1,000 random candidates per
secret, because ranks of controls among themselves are no independent sample.
"""

from __future__ import annotations

SEEDS = (0, 1, 2)
CANDIDATES = 1000
CONDITION = "alpha0"
FAMILY = (f"{CONDITION}/nll", f"{CONDITION}/exposure")
