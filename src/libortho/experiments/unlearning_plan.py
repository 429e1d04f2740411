"""How much of everything ``unlearning`` trains and asks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from pydantic import JsonValue

from libortho.baselines import UnlearnOptions
from libortho.errors import ConfigError
from libortho.experiments.natural import Training
from libortho.split import ForgetOptions
from libortho.tune import TuneOptions, tune_options


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        forget, retain: authors on either side, where the data is generated.
        tenants: equal parts of the rows to forget, each in a stream of its own too; 0 for none.
        probes: questions asked of a set, at most; as many sums are drawn.
        exposures: how often each row comes by in training.
        window: tokens of a window of public text, which goes along with every step.
        training: of the two whole models.
        tune: of a private stream.
        forgetting: of the sieve `forget` on the tuned model; None leaves it out.
        npo: of the baseline; None leaves it out.

    Raises:
        ConfigError: one tenant alone, or authors that tenants would have to share.
    """

    forget: int = 8
    retain: int = 32
    tenants: int = 4
    probes: int = 400
    exposures: int = 30
    window: int = 128
    training: Training = field(default_factory=lambda: Training(steps=300, batch=4))
    tune: TuneOptions = field(default_factory=lambda: tune_options(steps=300))
    forgetting: ForgetOptions | None = field(default_factory=ForgetOptions)
    npo: UnlearnOptions | None = field(default_factory=UnlearnOptions)

    def __post_init__(self) -> None:
        if self.tenants == 1 or (self.tenants and self.forget % self.tenants):
            raise ConfigError(
                f"{self.tenants} tenants for {self.forget} authors to forget: expected 0, or 2 or "
                "more that divide them"
            )

    def as_json(self) -> dict[str, JsonValue]:
        """Every field, for a record and for the name of a run's folder."""
        return {
            key: value.model_dump(mode="json")
            if hasattr(value, "model_dump")
            else asdict(value)
            if isinstance(value, Training)
            else value
            for key, value in vars(self).items()
        }


FULL = Plan()
SMALL = Plan(
    forget=4,
    retain=6,
    tenants=2,
    probes=100,
    exposures=20,
    training=Training(steps=60, batch=4),
    tune=tune_options(steps=80, settle=10, replay_batch=1),
    forgetting=None,
    npo=None,
)
