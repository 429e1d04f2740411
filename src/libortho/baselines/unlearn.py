"""Unlearning in floating point by NPO or GradDiff: every linear moves, nothing can be taken back.

    NPO (Zhang et al., arXiv 2404.05868):  −(2/β) · mean_i ln σ(−β · ln π(x_i)/π_before(x_i))
    GradDiff (Liu et al. 2022):            −mean_i CE(x_i)

both plus λ_n · KL on neighbours and λ_r · KL on public text, to the model before, so that what is
compared with ``forget`` differs in the objective and not in what holds the rest in place.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from libortho.checkpoint import Checkpoint, linear_layers
from libortho.errors import NumericsError
from libortho.privacy.encode import encode
from libortho.privacy.private_set import read_jsonl
from libortho.privacy.resample import neighbours as resampled
from libortho.progress import Progress, silent
from libortho.split.edited import write_edited
from libortho.split.forgetting import Neighbours, completion_nll
from libortho.split.request import UnlearningOptions
from libortho.streams.base_writer import check_target
from libortho.texts import Text, calibration
from libortho.tune import replay_windows
from libortho.tune.prepare import plain_model
from libortho.tune.replay import Replay, draws

_GROUP = 128


class UnlearnOptions(UnlearningOptions):
    """Settings of both objectives.

    Attributes:
        objective: ``npo`` or ``graddiff``.
        beta: β of NPO.
        steps: of AdamW, cosine to 0.
        lr: peak learning rate.
    """

    objective: Literal["npo", "graddiff"] = "npo"
    beta: float = Field(0.1, gt=0)
    steps: int = Field(200, ge=1)
    lr: float = Field(1e-4, gt=0)


def unlearn(
    source: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    options: UnlearnOptions | None = None,
    text: Text | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Path:
    """Write a checkpoint that has unlearned the rows of ``data``.

    Raises:
        NumericsError: the loss is not finite (GradDiff has no lower bound).
    """
    options = options or UnlearnOptions()
    target = Path(out).expanduser().absolute()
    check_target(target)
    checkpoint = Checkpoint(source)
    tokenizer = checkpoint.tokenizer()
    context = checkpoint.config.get_text_config().max_position_embeddings
    rows = read_jsonl(data).examples
    encoded = encode(tokenizer, rows, context)
    before, model = (plain_model(checkpoint.path, device) for _ in range(2))
    public = (text or calibration()).documents
    strangers = encode(
        tokenizer, resampled(rows, options.neighbours, options.seed, public), context
    )
    held = Neighbours(strangers, before)
    replay = Replay(replay_windows(tokenizer, options, text), before)
    names = [f"{name}.weight" for name in linear_layers(model, _GROUP, checkpoint.naming)[0]]
    parameters = [model.get_parameter(name).requires_grad_(True) for name in names]
    optimiser = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0)
    chosen_rows = draws(len(encoded), min(options.private_batch, len(encoded)), options.seed)
    windows = draws(len(replay.windows), options.replay_batch, options.seed + 1)
    near = draws(len(held.windows), options.neighbour_batch, options.seed + 2)
    for step in range(options.steps):
        for group in optimiser.param_groups:
            group["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        optimiser.zero_grad()
        chosen = [encoded[index] for index in next(chosen_rows).tolist()]
        lengths = torch.tensor([len(one.completion_ids) for one in chosen], device=device)
        nll = completion_nll(model, chosen) * lengths
        with torch.no_grad():
            known = completion_nll(before, chosen) * lengths
        loss = _objective(nll, known, lengths, options)
        if options.neighbour_weight:
            loss = loss + options.neighbour_weight * held.kl(model, next(near))
        if options.replay_weight:
            loss = loss + options.replay_weight * replay.kl(model, next(windows))
        if not math.isfinite(loss.item()):
            raise NumericsError(f"{options.objective}: step {step + 1}: the loss is {loss.item()}")
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        progress(options.objective, step + 1, options.steps, {"loss": loss.item()})
    weights = {name: model.get_parameter(name).detach().cpu() for name in names}
    return write_edited(checkpoint, weights, target)


def _objective(nll: Tensor, known: Tensor, lengths: Tensor, options: UnlearnOptions) -> Tensor:
    if options.objective == "graddiff":
        return -(nll / lengths).mean()
    # ln π/π_before = known − nll.
    return -2 / options.beta * nn.functional.logsigmoid(options.beta * (nll - known)).mean()
