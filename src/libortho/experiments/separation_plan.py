"""How much of everything ``separation`` does: in full on a GPU, reduced on two CPU cores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from pydantic import JsonValue

from libortho.baselines import UnlearnOptions
from libortho.errors import ConfigError
from libortho.experiments import killswitch, ways
from libortho.experiments.natural import Training
from libortho.privacy.mix import STRATA
from libortho.split import CurvatureOptions, DeltaOptions, ForgetOptions, ResidualOptions
from libortho.tune import TuneOptions


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        members: canaries that come by while training; as many controls do not.
        exposures: how often, members taking them in turn.
        window: tokens of a training window.
        bits: of the residual bases; 8 is a checkpoint in floating point.
        densities: of the residual stream, beside ``residual.density``, which is the largest.
        residual: how the residual bases, and those of the exact ways, are made.
        curvature: stored whole, so that α = 1 is the contaminated model.
        rhos: further shares of the curvature that stay in the base.
        moved: further densities that ``forget`` may move.
        tune: of the exact way that trains on the private data.
        delta: of the exact way that splits the contaminated model from the public one.
        tokens: of held-out text.
        problems: of arithmetic.
        relearn_steps: of the relearning attack, at most.
    """

    members: int = 200
    exposures: tuple[int, ...] = STRATA
    window: int = 256
    training: Training = field(default_factory=lambda: Training(lr=5e-4))
    bits: tuple[int, ...] = (2, 3, 4, 8)
    densities: tuple[float, ...] = (0.0, 0.005, 0.01, 0.02)
    residual: ResidualOptions = field(default_factory=lambda: ResidualOptions(density=0.05))
    curvature: CurvatureOptions = field(default_factory=lambda: CurvatureOptions(whole=True))
    rhos: tuple[float, ...] = (0.85, 0.9, 0.99)
    forget: ForgetOptions = field(default_factory=ForgetOptions)
    moved: tuple[float, ...] = (0.01, 0.02)
    tune: TuneOptions = killswitch.FULL.tune
    delta: DeltaOptions = killswitch.FULL.delta
    unlearn: UnlearnOptions = field(default_factory=lambda: UnlearnOptions(private_batch=128))
    tokens: int = 30_000
    problems: int = 300
    relearn_steps: int = 100

    def __post_init__(self) -> None:
        """Refuse a plan that lacks what others are held against: the rounded contaminated model."""
        forget, residual = self.forget, self.residual
        same = (forget.rounding, forget.group_size) == (residual.rounding, residual.group_size)
        if forget.bits not in self.bits or not same:
            raise ConfigError(
                f"forget rounds by {forget.rounding} to {forget.bits} bits, groups of "
                f"{forget.group_size}: expected a residual base that is rounded alike; there are "
                f"{residual.rounding}, groups of {residual.group_size}, of {list(self.bits)} bits"
            )
        if max(self.densities, default=0.0) > residual.density:
            raise ConfigError(
                f"densities {list(self.densities)}: expected at most that of the residual stream, "
                f"{residual.density:g}, of which they are the first entries"
            )


FULL = Plan()

# For two CPU cores: fewer secrets, all of them shown often, and shorter training everywhere.
SMALL = Plan(
    members=20,
    exposures=(16, 32),
    window=128,
    training=Training(steps=80, batch=6, lr=5e-4),
    bits=(3, 4),
    densities=(0.0, 0.01),
    residual=ResidualOptions(rounding="mse", density=0.05, windows=64),
    curvature=CurvatureOptions(rounding="mse", tokens=30_000, window=128, whole=True),
    rhos=(),
    forget=ForgetOptions(
        rounding="mse",
        steps=120,
        private_batch=10,
        neighbour_batch=8,
        replay_batch=2,
        neighbours=100,
    ),
    moved=(),
    tune=ways.DEMO.tune,
    delta=ways.DEMO.delta,
    unlearn=UnlearnOptions(
        steps=40, private_batch=10, neighbour_batch=8, replay_batch=2, neighbours=100
    ),
    tokens=6_000,
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
