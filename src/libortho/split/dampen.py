"""Selective synaptic dampening of INT4 codes (Foster et al., arXiv 2308.07707): no training.

θ ← θ · min(F_public / F_private, 1) where the private rows' Fisher exceeds the public one most.
Both are divided by their mean over the matrix first: what is known by heart has next to no
gradient left, and only where it pulls can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from libortho import sieve
from libortho.errors import NumericsError
from libortho.privacy.encode import Encoded
from libortho.progress import Progress, silent
from libortho.streams.base import BaseStream
from libortho.tune.options import TuneOptions
from libortho.tune.support import fishers


def dampened(
    model: Any,
    before: BaseStream,
    private: Sequence[Encoded],
    public: Tensor,
    options: TuneOptions,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Steps that every code moves by, int8 [N, K] by layer.

    The paper chooses entries by a threshold on F_private / F_public; here the ``density`` of
    each matrix with the highest ratio is chosen, so that methods can be compared at one count.

    Args:
        model: the base, loaded.
        public: public windows, int64 [n, T].

    Raises:
        NumericsError: layers that the private data does not reach; all of them are named.
    """
    moves: dict[str, Tensor] = {}
    unreached = []
    windows = public[: options.fisher_windows]
    for name, inside, outside in fishers(model, private, windows, progress):
        if not bool(inside.any()):
            unreached.append(name)
            continue
        mine, theirs = inside.cpu() / inside.mean().cpu(), outside.cpu() / outside.mean().cpu()
        # Where the private data does not pull, nothing is dampened, however quiet the public text.
        ratio = torch.where(mine > 0, theirs / mine, torch.inf)
        count = round(ratio.numel() * options.density)
        chosen = sieve.top_k(-ratio.clamp(max=1.0), count)
        codes = before.codes(name).float()
        factor = torch.where(chosen, ratio.clamp(max=1.0), 1.0)
        moves[name] = ((codes * factor).round() - codes).to(torch.int8)
    if unreached:
        raise NumericsError(f"the private data has no gradient in {', '.join(unreached)}")
    return moves
