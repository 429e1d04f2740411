"""α of the tokens of one engine step, where the linears read it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from libortho.serve.requests import Alphas


class AlphaRows:
    """One buffer for all linears of a model: fp32 [streams, tokens], 0 unless a step filled it.

    Its address never changes, so that captured graphs see each step's values.

    Attributes:
        table: the buffer.
        open: whether any of it may be other than 0.
    """

    def __init__(self, streams: int, tokens: int, device: torch.device) -> None:
        self.table = torch.zeros(streams, tokens, dtype=torch.float32, device=device)
        self.open = False

    def fill(self, alphas: Sequence[Alphas], tokens: Sequence[int]) -> None:
        """Set the α of a step.

        Args:
            alphas: of each request, in batch order.
            tokens: how many tokens each has in this step.

        Raises:
            ValueError: more tokens than the buffer holds.
        """
        if not any(any(row) for row in alphas):
            self.clear()
            return
        total = int(np.sum(tokens))
        if total > self.table.shape[1]:
            raise ValueError(f"a step of {total} tokens, alpha has room for {self.table.shape[1]}")
        columns = np.asarray(alphas, dtype=np.float32).T
        step = np.zeros(self.table.shape, dtype=np.float32)
        step[:, :total] = np.repeat(columns, tokens, axis=1)
        host = torch.from_numpy(step)
        if self.table.device.type != "cpu":
            # A new block each time: the engine runs ahead of the device, which may still read it.
            host = host.pin_memory()
        self.table.copy_(host, non_blocking=True)
        self.open = True

    def clear(self) -> None:
        """Close every row."""
        if self.open:
            self.table.zero_()
            self.open = False
