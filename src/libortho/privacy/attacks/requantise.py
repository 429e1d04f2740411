"""Re-quantisation: does rounding the base again bring secrets back, or merely hide them?

Unlearning by small changes is undone by rounding (Zhang et al., arXiv 2410.16454).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from libortho.privacy.attacks.subject import Outcome, Subject
from libortho.privacy.attacks.sweep import Change, swept
from libortho.quantizers import absmax, mse

GROUP = 128


def run(subject: Subject) -> Outcome:
    """Recall, AUC and NLL after rounding every decoder linear again."""
    return swept(subject, ROUNDINGS)


def rounded(weight: Tensor, bits: int, clipped: bool = False) -> Tensor:
    """A weight after a round trip through symmetric integers with a scale per 128 inputs.

    A width that 128 does not divide takes one scale a row.
    """
    size = GROUP if weight.shape[1] % GROUP == 0 else weight.shape[1]
    codes, scales = (mse if clipped else absmax)(weight, size, bits=bits)
    return codes * scales.float().repeat_interleave(size, dim=1)


ROUNDINGS: Mapping[str, Change] = {
    "4 bits": lambda weight: rounded(weight, 4),
    "4 bits, clipped": lambda weight: rounded(weight, 4, clipped=True),
    "3 bits": lambda weight: rounded(weight, 3),
    "2 bits": lambda weight: rounded(weight, 2),
}
