"""How much of everything ``separation`` does: in full on a GPU, reduced on two CPU cores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from pydantic import JsonValue

from libortho.baselines import UnlearnOptions
from libortho.experiments.natural import Training
from libortho.privacy.mix import STRATA
from libortho.split import CurvatureOptions, ForgetOptions, ResidualOptions


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        members: canaries that come by while training; as many controls do not.
        exposures: how often, members taking them in turn.
        window: tokens of a training window.
        bits: of the residual bases; 8 is a checkpoint in floating point.
        tokens: of held-out text.
        problems: of arithmetic.
        relearn_steps: of the relearning attack, at most.
    """

    members: int = 200
    exposures: tuple[int, ...] = STRATA
    window: int = 256
    training: Training = field(default_factory=Training)
    bits: tuple[int, ...] = (2, 3, 4, 8)
    residual: ResidualOptions = field(default_factory=ResidualOptions)
    curvature: CurvatureOptions = field(default_factory=CurvatureOptions)
    forget: ForgetOptions = field(default_factory=ForgetOptions)
    unlearn: UnlearnOptions = field(default_factory=UnlearnOptions)
    tokens: int = 30_000
    problems: int = 300
    relearn_steps: int = 100


FULL = Plan()

# For two CPU cores: fewer secrets, all of them shown often, and shorter training everywhere.
SMALL = Plan(
    members=30,
    exposures=(16, 64),
    window=128,
    training=Training(steps=70, batch=4),
    bits=(3, 4),
    residual=ResidualOptions(rounding="mse"),
    curvature=CurvatureOptions(rounding="mse", tokens=30_000, window=128),
    forget=ForgetOptions(
        rounding="mse",
        steps=60,
        private_batch=15,
        neighbour_batch=8,
        replay_batch=2,
        neighbours=100,
    ),
    unlearn=UnlearnOptions(
        steps=40, private_batch=15, neighbour_batch=8, replay_batch=2, neighbours=100
    ),
    tokens=8_000,
    problems=100,
    relearn_steps=15,
)


def plan_json(plan: Plan) -> dict[str, JsonValue]:
    """A plan for a record."""
    found: dict[str, JsonValue] = {}
    for key, value in vars(plan).items():
        if hasattr(value, "model_dump"):
            found[key] = value.model_dump(mode="json")
        elif isinstance(value, Training):
            found[key] = asdict(value)
        else:
            found[key] = list(value) if isinstance(value, tuple) else value
    return found
