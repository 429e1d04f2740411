"""Muon: momentum whose matrix updates are orthogonalised by Newton-Schulz iterations.

Source: Jordan et al., "Muon: an optimizer for hidden layers" (2024); the update's scale
0.2 * sqrt(max(rows, columns)) and decoupled weight decay from Liu et al., 2502.16982.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic whose iterates bring singular values near 1 fastest (Jordan et al.)."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Replace each matrix by one with the same singular vectors and singular values near 1.

    Args:
        matrices: [count, rows, columns].
        steps: Newton-Schulz iterations.

    Returns:
        Same shape and dtype; the work is done in bf16 on CUDA, in fp32 elsewhere.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; matrices of one shape are treated in one batch."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 4e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        bad = [
            tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim != 2
        ]
        if bad:
            raise ValueError(f"Muon takes matrices only, and was given shapes {bad}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                grads = [p.grad for p in params]
                buffers = [
                    self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params
                ]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                torch._foreach_lerp_(grads, buffers, group["momentum"])
                updates = orthogonalise(torch.stack(grads)).unbind()
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                scale = 0.2 * max(shape) ** 0.5
                torch._foreach_add_(params, updates, alpha=-group["lr"] * scale)
