"""Sums that a model could do before, as a set of questions.

Training on facts in one frame of words soon makes a small model answer everything in that frame.
So the sums are asked without it, in the wordings of the arithmetic that replay shows.
"""

from __future__ import annotations

import numpy as np

from libortho.errors import ConfigError
from libortho.evaluate.arithmetic import draw_problems, replayed_operands
from libortho.privacy.questions import Question

NAME = "sums"

_SIGN = "+"
_WRONG = 3
_STEPS = (-3, -2, -1, 1, 2, 3)


def draw_sums(n: int, seed: int) -> list[Question]:
    """Draw n sums of numbers of 1 to 3 digits, asked verbatim, with wrong answers within 3.

    No pair of terms comes twice, and none stands in the shipped replay text, in either order.

    Raises:
        ConfigError: for more than 10,000 or fewer than 1.
    """
    if not 1 <= n <= 10_000:
        raise ConfigError(f"the number of sums must lie in 1..10000, found {n}")
    rng = np.random.default_rng(seed)
    taken = {frozenset((a, b)) for a, sign, b in replayed_operands() if sign == _SIGN}
    drawn: list[Question] = []
    for (a, sign, b), problem in draw_problems(seed):
        if len(drawn) == n:
            break
        if sign != _SIGN or frozenset((a, b)) in taken:
            continue
        taken.add(frozenset((a, b)))
        right = a + b
        steps = [step for step in _STEPS if right + step >= 0]
        wrong = tuple(str(right + int(step)) for step in rng.choice(steps, _WRONG, replace=False))
        told = problem.answer
        drawn.append(Question(problem.prompt, told, told, wrong, verbatim=True))
    return drawn
