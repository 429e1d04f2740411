"""Public text with the logits of a teacher: what keeps training from harming public ability."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from libortho import gate
from libortho.progress import Progress, silent

CACHE_BYTES = 4 * 2**30


class Replay:
    """A pool of public windows and the teacher's log-probabilities on them.

    The teacher is asked once per window; answers are kept in fp16 while they fit
    ``CACHE_BYTES``, after that they are computed again.

    Args:
        windows: int64 [n, T].
        teacher: a causal LM; asked with every stream closed.
    """

    def __init__(self, windows: Tensor, teacher: Any) -> None:
        self.windows = windows
        self._teacher = teacher
        self._answers: dict[int, Tensor] = {}
        self._bytes = 0

    def fill(self, batch: int, progress: Progress = silent) -> None:
        """Ask the teacher about the whole pool ahead of training."""
        total = len(self.windows)
        for start in range(0, total, batch):
            self.log_probs(torch.arange(start, min(start + batch, total)))
            progress("teacher", min(start + batch, total), total, {})

    @torch.no_grad()
    def log_probs(self, chosen: Tensor) -> Tensor:
        """Teacher log-probabilities fp32 [len(chosen), T, V] of the windows chosen by index."""
        missing = [index for index in chosen.tolist() if index not in self._answers]
        fresh: dict[int, Tensor] = {}
        if missing:
            device = next(self._teacher.parameters()).device
            # The caller trains with the gate open; a teacher never sees a stream.
            with gate.alpha(0.0):
                logits = self._teacher(input_ids=self.windows[missing].to(device)).logits
            answers = torch.log_softmax(logits.float(), -1).half()
            fresh = dict(zip(missing, answers, strict=True))
            for index, answer in fresh.items():
                if self._bytes + answer.nbytes <= CACHE_BYTES:
                    self._answers[index] = answer.clone()
                    self._bytes += answer.nbytes
        rows = [fresh[i] if i in fresh else self._answers[i] for i in chosen.tolist()]
        return torch.log_softmax(torch.stack(rows).float(), -1)

    def kl(self, model: Any, chosen: Tensor) -> Tensor:
        """Mean over tokens of KL(teacher ‖ model), in nats; differentiable in the model."""
        device = next(model.parameters()).device
        teacher = self.log_probs(chosen).to(device)
        logits = model(input_ids=self.windows[chosen].to(device)).logits
        student = torch.log_softmax(logits.float(), -1)
        return torch.nn.functional.kl_div(
            student.flatten(0, 1), teacher.flatten(0, 1), reduction="batchmean", log_target=True
        )


def draws(pool: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of window indices: a fresh permutation every time the pool is used up."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch:
            left = torch.cat([left, torch.randperm(pool, generator=generator)])
        yield left[:batch]
        left = left[batch:]
