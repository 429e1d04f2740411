"""What the benchmark asks of a peer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from libortho.layout import BaseTiles

Tensors = tuple[Tensor, ...]


class Peer(ABC):
    """A kernel of others with weights in its own order.

    Attributes:
        name: as a record names it.
        dtype: of the rows that it multiplies.
        most_rows: above this many it is not timed.
        takes_streams: whether a sparse matrix joins in, by one call.
        variants: ways to run it; the fastest right one counts.
    """

    name: str
    dtype = torch.float16
    most_rows = 64
    takes_streams = False
    variants: tuple[str, ...] = ("",)

    @abstractmethod
    def __init__(self, library: Path) -> None:
        """Raises KernelRefused: the library cannot be loaded, or lacks a function."""

    @abstractmethod
    def pack(self, base: BaseTiles) -> Tensors:
        """The base in this peer's order, or random weights of its shape where it cannot hold it."""

    @abstractmethod
    def dense(self, base: BaseTiles, packed: Tensors) -> Tensor:
        """What ``packed`` stands for, float32 [N, K]."""

    @abstractmethod
    def multiply(self, x: Tensor, packed: Tensors, stream: Tensors | None, variant: str) -> Tensor:
        """x [M, K] times the weights: [M, N] of x's dtype."""

    def pack_stream(self, csr: Tensor) -> Tensors:
        """A sparse CSR matrix [N, K] in this peer's order."""
        raise NotImplementedError(f"{self.name} takes no stream")
