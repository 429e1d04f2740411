"""What methods of separation are compared with: each takes a checkpoint and writes another.

The remaining two need no function of their own: Q4(W₀) is :func:`libortho.quantize` of the public
checkpoint, and "retrain without" is :func:`libortho.experiments.natural.contaminate` with
``without``.
"""

from libortho.baselines.prune import prune
from libortho.baselines.round import rounded
from libortho.baselines.unlearn import UnlearnOptions, unlearn

__all__ = ["UnlearnOptions", "prune", "rounded", "unlearn"]
