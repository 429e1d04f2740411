"""Rounding weights to symmetric INT4 groups: W [N, K] → codes int8 [N, K], scales [N, K/g].

``absmax`` and ``mse`` use element-wise arithmetic and additions in a fixed order only, so that
their results are the same bits on every machine. ``gptq`` needs floating-point linear algebra.
"""

from libortho.quantizers.absmax import absmax
from libortho.quantizers.gptq import gptq
from libortho.quantizers.mse import mse

__all__ = ["absmax", "gptq", "mse"]
