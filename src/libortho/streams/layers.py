"""One layer of an ortho stream: the tensors of its kind, and the rules that they follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CsrLayer:
    """A sparse [N, K] matrix: int32 ``indptr`` [N + 1], int32 ``indices`` and ``values`` [nnz]."""

    indptr: Tensor
    indices: Tensor
    values: Tensor
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        """Values that the layer stores."""
        return self.values.numel()

    def rows(self) -> Tensor:
        """Row of every entry, int64 [nnz]."""
        counts = torch.diff(self.indptr.long())
        return torch.repeat_interleave(torch.arange(self.shape[0]), counts)

    def dense(self) -> Tensor:
        """The matrix as fp32 [N, K]."""
        matrix = torch.zeros(self.shape)
        matrix[self.rows(), self.indices.long()] = self.values.float()
        return matrix

    def problems(self) -> list[str]:
        """Every rule of the format that these tensors break, in words."""
        n, k = self.shape
        found: list[str] = []
        if self.indptr.dtype != torch.int32 or tuple(self.indptr.shape) != (n + 1,):
            found.append(
                f"indptr is {self.indptr.dtype} {list(self.indptr.shape)}, expected int32 [{n + 1}]"
            )
        if self.indices.dtype != torch.int32:
            found.append(f"indices are {self.indices.dtype}, expected int32")
        if not self.values.dtype.is_floating_point:
            found.append(f"values are {self.values.dtype}, expected fp16")
        if self.indices.shape != self.values.shape or self.values.dim() != 1:
            found.append(
                f"indices {list(self.indices.shape)} and values "
                f"{list(self.values.shape)} must be one row of equal length"
            )
        if found:
            return found
        steps = torch.diff(self.indptr.long())
        ends = (int(self.indptr[0]), int(self.indptr[-1]))
        if ends != (0, self.nnz) or bool((steps < 0).any()):
            return [f"indptr must rise from 0 to {self.nnz}, found {ends[0]} to {ends[1]}"]
        if self.nnz:
            columns = self.indices.long()
            if int(columns.min()) < 0 or int(columns.max()) >= k:
                found.append(
                    f"column indices span {int(columns.min())}…{int(columns.max())}, "
                    f"allowed 0…{k - 1}"
                )
            elif bool((torch.diff(self.rows() * k + columns) <= 0).any()):
                found.append("columns of a row must rise strictly")
        return found


@dataclass(frozen=True)
class LowRankLayer:
    """An adapter kept as its factors: adds ``scaling · b · a`` with a [r, K] and b [N, r]."""

    a: Tensor
    b: Tensor
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    @property
    def nnz(self) -> int:
        """Values that the layer stores, in both factors."""
        return self.a.numel() + self.b.numel()

    def dense(self) -> Tensor:
        """The matrix as fp32 [N, K]."""
        return self.scaling * (self.b.float() @ self.a.float())

    def problems(self) -> list[str]:
        """Every rule of the format that these tensors break, in words."""
        found = []
        if self.a.dim() != 2 or self.b.dim() != 2 or self.a.shape[0] != self.b.shape[1]:
            found.append(
                f"a {list(self.a.shape)} and b {list(self.b.shape)} must be [r, K] and [N, r]"
            )
        if self.a.dtype != self.b.dtype or not self.a.dtype.is_floating_point:
            found.append(f"a is {self.a.dtype}, b is {self.b.dtype}, expected one floating dtype")
        return found


@dataclass(frozen=True)
class DenseLayer:
    """A difference stored whole: of a converted linear [N, K], or of any other parameter."""

    delta: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.delta.shape)

    @property
    def nnz(self) -> int:
        """Values that the layer stores."""
        return self.delta.numel()

    def dense(self) -> Tensor:
        """The difference as fp32."""
        return self.delta.float()

    def problems(self) -> list[str]:
        """Every rule of the format that this tensor breaks, in words."""
        if not self.delta.dtype.is_floating_point:
            return [f"delta is {self.delta.dtype}, expected fp16"]
        return []


Layer = CsrLayer | LowRankLayer | DenseLayer


def csr_from_dense(matrix: Tensor, mask: Tensor) -> CsrLayer:
    """Gather the entries of ``matrix`` [N, K] where ``mask`` is set into a CSR layer (fp16)."""
    indptr, indices = csr_support(mask)
    rows, columns = matrix.shape
    return CsrLayer(indptr, indices, matrix[mask].to(torch.float16), (rows, columns))


def csr_support(mask: Tensor) -> tuple[Tensor, Tensor]:
    """``indptr`` int32 [N + 1] and ``indices`` int32 [nnz] of a boolean mask [N, K]."""
    counts = mask.sum(1)
    indptr = torch.zeros(mask.shape[0] + 1, dtype=torch.int32)
    indptr[1:] = counts.cumsum(0)
    return indptr, mask.nonzero()[:, 1].to(torch.int32)
