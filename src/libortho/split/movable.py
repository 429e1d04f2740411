"""INT4 codes of a base that gradients may move: streams whose values are whole numbers of steps.

A parameter z per entry says how many steps its code should move; the forward computes with the
move that this comes to, and the gradient passes through the rounding (Bengio et al., arXiv
1308.3432). What is trained is therefore what is written, to the last code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from libortho.layout import tile_values
from libortho.linear import CsrStream
from libortho.streams.layers import CsrLayer


class MovableCodes(CsrStream):
    """Moves of 0, ±1, ±2, ±4 or ±8 steps within the levels in use.

    A power of two times a scale is a number of fp16 wherever the scale is one, so that the stream
    which takes the move back restores the weight bit for bit.

    Args:
        layer: the support; its values are ignored.
        codes: int8 [nnz] of the base there, in CSR order.
        scales: [nnz], the step of each entry.
        low: lowest level in use.
        high: highest level in use.
        seed: of where the wishes begin. They lie anywhere below the first move; if all began at
            0, an optimiser that makes steps of one size would move all codes in one instant.
    """

    codes: Tensor
    steps: Tensor

    def __init__(
        self, layer: CsrLayer, codes: Tensor, scales: Tensor, low: int, high: int, seed: int
    ) -> None:
        super().__init__(layer)
        self._low, self._high = low, high
        self.register_buffer("codes", codes.float())
        self.register_buffer("steps", scales.float())
        begin = torch.rand(layer.nnz, generator=torch.Generator().manual_seed(seed))
        self.wish = nn.Parameter(self._begin(begin))

    @staticmethod
    def _begin(uniform: Tensor) -> Tensor:
        return (uniform - 0.5) * 0.98

    def moves(self) -> Tensor:
        """Steps that each code moves, whole numbers as fp32 [nnz]."""
        wish = self.wish.detach()
        room = torch.where(wish > 0, self._high - self.codes, self.codes - self._low)
        size = wish.abs()
        steps = torch.zeros_like(size)
        for power in (1.0, 2.0, 4.0, 8.0):
            # Each power takes over half-way from the one before it.
            reached = (size >= 0.75 * power) if power > 1 else (size >= 0.5)
            steps = torch.where(reached & (room >= power), power, steps)
        return steps * wish.sign()

    def tile_values(self) -> Tensor:
        """The change of the weights in tile order, [S, 16], with the gradient of ``wish``."""
        passed = self.wish + (self.moves() - self.wish).detach()
        return tile_values(passed * self.steps, self.order)

    def confine(self) -> None:
        """Bring wishes back to what the levels can grant, so that none is out of reach."""
        with torch.no_grad():
            self.wish.copy_(torch.clamp(self.wish, self._low - self.codes, self._high - self.codes))


class MaskedCodes(MovableCodes):
    """Codes are removed, not moved: an entry whose wish exceeds one half becomes 0.

    The learned mask of BalancedSubnet (Sakarvadia et al., arXiv 2410.02159) on a given support.
    """

    @staticmethod
    def _begin(uniform: Tensor) -> Tensor:
        return uniform * 0.49

    def moves(self) -> Tensor:
        return torch.where(self.wish.detach() > 0.5, -self.codes, 0.0)

    def tile_values(self) -> Tensor:
        removed = -self.codes * self.steps
        hard = (self.wish.detach() > 0.5).to(removed.dtype)
        return tile_values(removed * (self.wish + (hard - self.wish).detach()), self.order)

    def confine(self) -> None:
        with torch.no_grad():
            self.wish.clamp_(0.0, 1.0)
