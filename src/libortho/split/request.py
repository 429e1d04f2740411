"""What every sieve is given, and the rounding that those with a base of their own share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError, UnsupportedLayer
from libortho.naming import expert_matrices
from libortho.progress import Progress, silent
from libortho.split.result import Split
from libortho.streams.manifest import Method as Rounding
from libortho.texts import Text
from libortho.tune.options import ReplayOptions


@dataclass(frozen=True)
class Request:
    """One split, as it was asked for.

    Attributes:
        source: a base or public checkpoint (``delta``), or the checkpoint that mixes public and
            private (every other method).
        out: where base and stream will stand.
        stream: name of the stream.
        tuned: the tuned checkpoint or adapter.
        data: the private data.
        public: the public checkpoint, where ``source`` is a base.
        text: public text; None for the samples shipped with libortho.
        device: where models run.
    """

    source: str | Path
    out: str | Path
    stream: str = "private"
    tuned: str | Path | None = None
    data: str | Path | None = None
    public: str | Path | None = None
    text: Text | None = None
    device: str | torch.device = "cpu"
    progress: Progress = silent

    def only_mixed(self, method: str) -> None:
        """Check a split of one checkpoint.

        Raises:
            ConfigError: something was given that it has no use for.
            UnsupportedLayer: the checkpoint has experts, which no stream acts on: what they learned
                would stay in the base. All of them are named.
        """
        given = {"--tuned": self.tuned, "--public": self.public}
        unused = [flag for flag, value in given.items() if value is not None]
        if unused:
            raise ConfigError(
                f"--method {method} takes one checkpoint that mixes public and private, and "
                f"perhaps --data: no {', no '.join(unused)}"
            )
        checkpoint = Checkpoint(self.source)
        experts = expert_matrices(checkpoint.skeleton(), checkpoint.naming)
        if experts:
            raise UnsupportedLayer(
                f"{self.source}: no stream acts on experts, so that --method {method} would leave "
                f"what they learned in the base: {', '.join(experts)}. Where the public checkpoint "
                "is at hand, `libortho tune` or an adapter puts private data beside it"
            )


class SieveOptions(BaseModel):
    """What the options of every method have in common: unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class UnlearningOptions(ReplayOptions):
    """What unlearning pulls at, and what holds the rest in place.

    Attributes:
        private_batch: rows a step.
        neighbours: synthetic rows of the same templates, which must not change on the way.
        neighbour_weight: λ of the KL on neighbours; 0 teaches the model to refuse the template.
        neighbour_batch: neighbours a step.
    """

    private_batch: int = Field(64, ge=1)
    neighbours: int = Field(1000, ge=1)
    neighbour_weight: float = Field(10.0, ge=0)
    neighbour_batch: int = Field(32, ge=1)


class RoundingOptions(SieveOptions):
    """How the checkpoint is rounded to a base.

    Attributes:
        rounding: ``gptq``, ``mse``, ``absmax`` or ``absmax-channel``.
        bits: levels used in the INT4 files: those of 2, 3 or 4 bits.
        group_size: weights per scale.
        seed: of every draw.
    """

    rounding: Rounding = "gptq"
    bits: Literal[2, 3, 4] = 4
    group_size: Literal[32, 64, 128] = 128
    seed: int = 0

    def quantize_with(self, text: Text | None) -> dict[str, Any]:
        """The arguments of :func:`libortho.quantize`; only GPTQ reads text."""
        return {
            "method": self.rounding,
            "bits": self.bits,
            "group_size": self.group_size,
            "seed": self.seed,
            "text": text if self.rounding == "gptq" else None,
        }


Options = TypeVar("Options", bound=BaseModel, contravariant=True)


class Sieve(Protocol[Options]):
    """The one signature of every method of separation."""

    def __call__(self, request: Request, options: Options) -> Split: ...


AnyOptions = TypeVar("AnyOptions", bound=BaseModel)


def options_of(kind: type[AnyOptions], method: str, values: Mapping[str, Any]) -> AnyOptions:
    """Options of a method from values by name.

    Raises:
        ConfigError: names that the method does not know, and values out of range; all of them.
    """
    unknown = sorted(set(values) - set(kind.model_fields))
    if unknown:
        raise ConfigError(
            f"--method {method} has no {_flags(unknown)}; it has "
            f"{_flags(sorted(kind.model_fields))}"
        )
    try:
        return kind(**values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{_flags(map(str, item['loc']))}: {item['msg']}, found {item['input']!r}"
            for item in error.errors()
        )
        raise ConfigError(f"--method {method}: {wrong}") from error


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
