"""How far two correct float32 implementations of one model may differ in log-probability.

A dot product of length K in precision u has relative error of about √K · u for rounding errors of
random sign (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019). Both implementations make such
errors in every linear on the path to the logits, and to first order they add up in the residual
stream:

    ε = 2 · Σ over linears of λ · √K · u,  λ = 4 (a confidence factor),  u = 2⁻²⁴

A relative error ε of the last hidden state h moves a logit by at most ε · ‖h‖ · ‖w‖; two logits
enter a log-probability, so that

    |Δ log p| ≤ 2 · ε · max‖h‖ · max‖w‖.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

UNIT_ROUNDOFF = 2.0**-24
CONFIDENCE = 4.0


def relative_error(layers: Mapping[str, tuple[int, int]]) -> float:
    """ε of two forwards through ``layers``, (N, K) by name."""
    return 2 * sum(CONFIDENCE * math.sqrt(k) * UNIT_ROUNDOFF for _, k in layers.values())


def log_prob_tolerance(
    layers: Mapping[str, tuple[int, int]], hidden: Tensor, head: Tensor
) -> float:
    """Largest |Δ log p| that rounding explains, in nats.

    Args:
        layers: (N, K) of the linears on the path, by name.
        hidden: last hidden states, [..., d].
        head: output embeddings, [V, d].
    """
    longest = float(hidden.float().norm(dim=-1).max())
    widest = float(head.float().norm(dim=-1).max())
    return 2 * relative_error(layers) * longest * widest
