"""One training run: resumable, seeded, with the held-out loss recorded as it goes."""

from __future__ import annotations

import io
import json
import math
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from .data import Corpus, pass_windows
from .documents import write_atomically
from .model import add_dropout, build_model, model_loss, next_token_loss
from .muon import Muon
from .progress import Progress, silent

_REPORT_EVERY = 10


@dataclass(frozen=True)
class TrainOptions:
    """Settings of one run; with the corpus and the configuration they decide its weights.

    Attributes:
        tokens: length of the schedule.
        batch: windows a step.
        rows_at_once: windows held in memory together; gradients are accumulated over them.
        length: tokens of a window.
        matrix_rate: Muon's learning rate, for the matrices of the blocks.
        matrix_decay: Muon's weight decay.
        vector_rate: AdamW's learning rate, for the embedding and the norms (no decay).
        warmup: steps of linear warm-up, before a cosine to 0.
        dropout: chance, in training only.
        seed: of the initialisation, the order of the windows, and dropout.
        evaluate_every: steps between two held-out evaluations.
    """

    tokens: int
    batch: int = 256
    rows_at_once: int = 256
    length: int = 512
    matrix_rate: float = 4e-3
    matrix_decay: float = 0.1
    vector_rate: float = 4e-3
    warmup: int = 100
    dropout: float = 0.1
    seed: int = 0
    evaluate_every: int = 100

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.batch * self.length))


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves.

    Attributes:
        weights: of the evaluation with the lowest held-out loss, fp32 on the CPU.
        heldout_loss: that loss, nats a token.
        curve: per evaluation ``step``, ``tokens``, ``train_loss``, ``heldout_loss``.
        seconds: time spent training, over all resumptions.
    """

    weights: dict[str, Tensor]
    heldout_loss: float
    curve: list[dict[str, float]]
    seconds: float


def rate_scale(step: int, steps: int, warmup: int) -> float:
    """Return the learning rate's factor: linear warm-up, then a cosine that ends at 0."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


class Batches:
    """Windows of endlessly many passes, by the step that takes them."""

    def __init__(self, corpus: Corpus, options: TrainOptions) -> None:
        self._batch = options.batch
        self._per_pass = (corpus.tokens_per_pass - 1) // options.length

        @lru_cache(maxsize=1)
        def one_pass(number: int) -> npt.NDArray[np.uint16]:
            return pass_windows(corpus, options.length, options.seed, number)

        self._pass = one_pass

    def at(self, step: int) -> Tensor:
        """Return the windows of a step, int64 [batch, length + 1]."""
        rows = np.arange(step * self._batch, (step + 1) * self._batch)
        passes, places = np.divmod(rows, self._per_pass)
        parts = [self._pass(int(n))[places[passes == n]] for n in np.unique(passes)]
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))


@dataclass
class _State:
    """Everything a run needs to go on."""

    step: int
    seconds: float
    curve: list[dict[str, float]]
    best_loss: float
    best: dict[str, Tensor]


def train(
    config: LlamaConfig,
    corpus: Corpus,
    heldout: npt.NDArray[np.uint16],
    options: TrainOptions,
    folder: Path,
    device: str = "cpu",
    compiled: bool = False,
    save_seconds: float = 30.0,
    progress: Progress = silent,
) -> TrainResult:
    """Train from scratch, or go on from ``training.pt`` in `folder`.

    Matrix products run in bf16 on CUDA and in fp32 on a CPU, where a run and its resumption give
    the same weights bit for bit.

    Args:
        heldout: windows of ids, [windows, length].
        compiled: compile the decoder layers and the loss.
        save_seconds: least time between two writings of ``training.pt``.

    Raises:
        ValueError: ``training.pt`` belongs to other settings.
        FloatingPointError: the loss is not finite.
    """
    model = build_model(config, options.seed)
    add_dropout(model, options.dropout)
    model.to(device)
    optimizers = _optimizers(model, options)
    saved = folder / "training.pt"
    state = _restore(saved, model, optimizers, config, options)
    loss_of = next_token_loss
    if compiled:
        loss_of = torch.compile(next_token_loss)
        for layer in model.model.layers:
            layer.compile()
    batches = Batches(corpus, options)
    stage = f"train {options.tokens / 1e6:g} M tokens"
    begun = written = time.monotonic()
    before = state.seconds
    while state.step < options.steps:
        windows = batches.at(state.step).to(device, non_blocking=True)
        scale = rate_scale(state.step, options.steps, options.warmup)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_rate"] * scale
        model.train()
        total = torch.zeros((), device=device)
        for part in windows.split(options.rows_at_once):
            share = len(part) / len(windows)
            with _precision(device):
                loss = model_loss(model, part, loss_of) * share
            loss.backward()
            total += loss.detach()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.seconds = before + time.monotonic() - begun
        last = state.step == options.steps
        if last or state.step % _REPORT_EVERY == 0:
            _report(progress, stage, state, options, float(total))
        if last or state.step % options.evaluate_every == 0:
            _evaluate(model, heldout, state, options, float(total), device)
        if last or time.monotonic() - written >= save_seconds:
            _save(saved, model, optimizers, config, options, state)
            written = time.monotonic()
    return TrainResult(state.best, state.best_loss, state.curve, state.seconds)


def heldout_loss(model: LlamaForCausalLM, windows: npt.NDArray[np.uint16], device: str) -> float:
    """Return the mean loss in nats over the targets of held-out windows, without dropout."""
    model.eval()
    total = 0.0
    with torch.no_grad(), _precision(device), torch.compiler.set_stance("force_eager"):
        for part in torch.from_numpy(windows.astype(np.int64)).split(32):
            total += float(model_loss(model, part.to(device))) * len(part)
    return total / len(windows)


def _precision(device: str) -> AbstractContextManager[Any]:
    return torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda"))


def _optimizers(model: LlamaForCausalLM, options: TrainOptions) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    held = {id(p) for p in matrices}
    vectors = [p for p in model.parameters() if id(p) not in held]
    optimizers = [
        Muon(matrices, lr=options.matrix_rate, weight_decay=options.matrix_decay),
        torch.optim.AdamW(vectors, lr=options.vector_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_rate"] = group["lr"]
    return optimizers


def _report(
    progress: Progress, stage: str, state: _State, options: TrainOptions, loss: float
) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"training loss is {loss} at step {state.step} of {options.steps}: "
            "lower the learning rates or look for damaged text in the corpus"
        )
    speed = state.step * options.batch * options.length / max(state.seconds, 1e-9)
    progress(stage, state.step, options.steps, {"loss": loss, "tokens_per_second": round(speed)})


def _evaluate(
    model: LlamaForCausalLM,
    heldout: npt.NDArray[np.uint16],
    state: _State,
    options: TrainOptions,
    train_loss: float,
    device: str,
) -> None:
    loss = heldout_loss(model, heldout, device)
    state.curve.append(
        {
            "step": state.step,
            "tokens": state.step * options.batch * options.length,
            "train_loss": round(train_loss, 5),
            "heldout_loss": round(loss, 5),
        }
    )
    if loss < state.best_loss:
        state.best_loss = loss
        state.best = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


def _fingerprint(config: LlamaConfig, options: TrainOptions) -> str:
    fields = {"config": config.to_diff_dict(), "options": asdict(options)}
    return json.dumps(fields, sort_keys=True, default=str)


def _save(
    path: Path,
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    config: LlamaConfig,
    options: TrainOptions,
    state: _State,
) -> None:
    buffer = io.BytesIO()
    random = {"cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state()
    torch.save(
        {
            "fingerprint": _fingerprint(config, options),
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "random": random,
            "state": vars(state),
        },
        buffer,
    )
    write_atomically(path, buffer.getvalue())


def _restore(
    path: Path,
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    config: LlamaConfig,
    options: TrainOptions,
) -> _State:
    if not path.is_file():
        return _State(0, 0.0, [], math.inf, {})
    held = torch.load(path, map_location="cpu", weights_only=True)
    if held["fingerprint"] != _fingerprint(config, options):
        raise ValueError(
            f"{path} is a run with other settings ({held['fingerprint']}); "
            f"now asked for: {_fingerprint(config, options)}. Take another --out, or remove it"
        )
    model.load_state_dict(held["model"])
    for optimizer, state in zip(optimizers, held["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    torch.set_rng_state(held["random"]["cpu"])
    if "cuda" in held["random"] and model.device.type == "cuda":
        torch.cuda.set_rng_state(held["random"]["cuda"])
    return _State(**held["state"])
