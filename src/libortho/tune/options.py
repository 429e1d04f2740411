"""The settings of training, checked when they enter."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from libortho.errors import ConfigError
from libortho.sieve.support import Budget


class ReplayOptions(BaseModel):
    """How training is held to a teacher on public text.

    Attributes:
        replay_weight: λ of the KL to the teacher on public text.
        replay_batch: windows of public text a step.
        replay_window: tokens a window.
        replay_pool: windows to draw from; their teacher logits are computed once.
        seed: of every draw.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    replay_weight: float = Field(10.0, ge=0)
    replay_batch: int = Field(4, ge=1)
    replay_window: int = Field(128, ge=2)
    replay_pool: int = Field(250, ge=1)
    seed: int = 0


class TuneOptions(ReplayOptions):
    """How the values of a stream are trained; every field is a flag of ``libortho tune``.

    Attributes:
        density: share of each matrix that the stream may hold, nnz / numel.
        budget: ``uniform`` gives every matrix that density, ``global`` lets them compete.
        steps: at most this many; training ends sooner once everything is recalled.
        settle: steps that anneal the learning rate to 0 once everything is recalled twice running.
        lr: peak learning rate of Adam on the values.
        warmup: steps of linear warm-up; a cosine to 0 follows.
        private_batch: examples a step; all of them when there are fewer.
        fisher_windows: public windows for the Fisher that the private one is contrasted with.
    """

    density: float = Field(0.02, gt=0, le=1)
    budget: Budget = "uniform"
    steps: int = Field(200, ge=1)
    settle: int = Field(30, ge=0)
    lr: float = Field(5e-3, gt=0)
    warmup: int = Field(5, ge=0)
    replay_weight: float = Field(15.0, ge=0)
    private_batch: int = Field(256, ge=1)
    fisher_windows: int = Field(32, ge=1)


def tune_options(**values: Any) -> TuneOptions:
    """Build the options; ConfigError lists every field that is wrong."""
    try:
        return TuneOptions(**values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}, found {item['input']!r}"
            for item in error.errors()
        )
        raise ConfigError(f"training options: {wrong}") from error
