"""Every method and baseline of ``separation``, as what it writes into a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from libortho.baselines import prune, rounded, unlearn
from libortho.experiments.natural import contaminate
from libortho.experiments.separation_plan import Plan
from libortho.experiments.turns import turn
from libortho.privacy.canaries import CanarySet
from libortho.privacy.encode import Encoded
from libortho.privacy.private_set import write_jsonl
from libortho.progress import Progress, silent
from libortho.quantize import quantize
from libortho.split import Request, split
from libortho.split.curvature import Factors, curvature_factors, split_curvature
from libortho.split.forget import split_forget
from libortho.split.residual import column_weights, write_residuals
from libortho.streams.base import BaseStream
from libortho.texts import Text
from libortho.tune import tune
from libortho.tune.prepare import base_at, is_base

CONTAMINATED = "contaminated"
NEVER = "never-exposed"
HALF = "forget-half"
EXACT = ("tune", "delta")


@dataclass(frozen=True)
class Setting:
    """What one run is made on; ``folder`` keeps what it leaves, so that it can go on."""

    public: str | Path
    folder: Path
    plan: Plan
    seed: int
    device: str | torch.device = "cpu"
    text: Text | None = None
    progress: Progress = silent


@dataclass(frozen=True)
class Way:
    """One row of the table.

    Attributes:
        make: writes a model directory.
        attacked: whether its weights are attacked, too; points of a sweep are not.
        guarantee: ``exact`` or ``measured``.
        stands_for: the row whose model α = 1 is to be.
        restores: gives the base whose codes α = 1 is to be, where the way moves codes.
        densities: of a sweep over the stream: the stream's name, None for no stream.
    """

    make: Callable[[Path], None]
    attacked: bool = True
    guarantee: str = "measured"
    stands_for: str = CONTAMINATED
    restores: Callable[[], BaseStream] | None = None
    densities: Mapping[float, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """What the ways are made from.

    Attributes:
        members: all that came by in training, with their ``exposures``.
        data: the same as a file.
        named: indices of those that ``forget-half`` is told of.
        windows: public text, int64 [n, T].
    """

    canaries: CanarySet
    members: Sequence[Encoded]
    exposures: Sequence[int]
    data: Path
    named: Sequence[int]
    windows: Tensor


def contaminated(setting: Setting, made: Material, out: Path, without: Sequence[int] = ()) -> None:
    """Train the public model on, unless ``out`` holds what came of it."""
    if (out / "tokenizer.json").is_file():
        return
    shutil.rmtree(out, ignore_errors=True)
    contaminate(
        setting.public,
        made.members,
        made.exposures,
        made.windows,
        out,
        replace(setting.plan.training, seed=setting.seed),
        without=without,
        device=setting.device,
        progress=setting.progress,
    )


class Ways:
    """All rows, by name, in the order in which they are made."""

    def __init__(self, setting: Setting, made: Material) -> None:
        self.setting, self.made = setting, made
        self.mixed = setting.folder / CONTAMINATED
        self.common: dict[str, Any] = {
            "text": setting.text,
            "device": setting.device,
            "progress": setting.progress,
        }

    def all(self) -> Mapping[str, Way]:
        """Every method and baseline."""
        plan = self.setting.plan
        forget, curvature = plan.forget, plan.curvature
        # What moves codes gives them back, not the checkpoint that they were rounded from.
        rounded_alike = f"residual-{forget.bits}"
        restores = partial(self.mixed_base, forget.bits)

        def moving(options: Any, attacked: bool = True, data: Path | None = None) -> Way:
            return Way(
                self._forget(options, data), attacked, stands_for=rounded_alike, restores=restores
            )

        return {
            CONTAMINATED: Way(self._there),
            NEVER: Way(self._never),
            "tune": Way(self._tune, guarantee="exact"),
            "delta": Way(self._delta, guarantee="exact"),
            **{f"residual-{bits}": self._residual(bits) for bits in plan.bits},
            "curvature": Way(self._curvature(curvature)),
            **{
                f"curvature-{rho:g}": Way(
                    self._curvature(_with(curvature, rho=rho)), attacked=False
                )
                for rho in plan.rhos
            },
            "forget": moving(forget),
            **{
                f"forget-{density:g}": moving(_with(forget, density=density), attacked=False)
                for density in plan.moved
            },
            HALF: moving(forget, data=self._named()),
            "forget-alone": moving(_with(forget, neighbour_weight=0.0)),
            "mask": moving(_with(forget, rule="mask")),
            "ssd": moving(_with(forget, rule="ssd", density=0.003)),
            "wanda": Way(self._pruned("wanda")),
            "sparsegpt": Way(self._pruned("sparsegpt")),
            "npo": Way(self._unlearned("npo")),
            "graddiff": Way(self._unlearned("graddiff")),
        }

    def _there(self, path: Path) -> None:
        assert path == self.mixed

    def _never(self, path: Path) -> None:
        """Trained on the same text in the same order, every secret left out, then rounded."""
        plain = path.with_name(f"{path.name}-plain")
        contaminated(self.setting, self.made, plain, range(len(self.made.members)))
        self._round(plain, path)

    def _round(self, plain: str | Path, path: Path) -> None:
        """As the residual base is rounded, so that all are compared at one width."""
        setting = self.setting
        rounding = setting.plan.residual.quantize_with(setting.text)
        quantize(plain, path, **rounding, progress=setting.progress)

    def _base(self) -> Path:
        """The public base of both exact ways."""
        path = self.setting.folder / "base"
        with turn(self.setting.folder, path.name):
            if not is_base(path):
                self._round(self.setting.public, path)
        return path

    def mixed_base(self, bits: int) -> BaseStream:
        """The rounded contaminated model, which residuals are of and codes are moved in."""
        setting = self.setting
        path = setting.folder / f"rounded-{bits}"
        with turn(setting.folder, path.name):
            if not is_base(path):
                options = _with(setting.plan.residual, bits=bits, seed=setting.seed)
                rounding = options.quantize_with(setting.text)
                quantize(self.mixed, path, **rounding, progress=setting.progress)
        return BaseStream.open(path)

    def _tune(self, path: Path) -> None:
        setting = self.setting
        options = _with(setting.plan.tune, seed=setting.seed)
        base = self._base()
        tune(base, self.made.data, path, public=setting.public, options=options, **self.common)

    def _delta(self, path: Path) -> None:
        setting = self.setting
        split(
            self._base(),
            path,
            tuned=self.mixed,
            data=self.made.data,
            public=setting.public,
            options=_with(setting.plan.delta, seed=setting.seed),
            **self.common,
        )

    def _request(self, path: Path, stream: str = "private", data: Path | None = None) -> Request:
        return Request(self.mixed, path, stream, data=data or self.made.data, **self.common)

    def _curvature(self, options: Any) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            split_curvature(self._request(path), self._seeded(options), self._factors)

        return make

    @cached_property
    def _factors(self) -> Factors:
        """Of the contaminated model, whatever ρ is."""
        return curvature_factors(
            self._request(self.mixed), self._seeded(self.setting.plan.curvature)
        )

    def _forget(self, options: Any, data: Path | None) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            before = self.mixed_base(options.bits)
            split_forget(self._request(path, data=data), self._seeded(options), before)

        return make

    def _residual(self, bits: int) -> Way:
        if bits > 4:
            return Way(lambda path: self._rounded(path, bits))
        options = self._seeded(_with(self.setting.plan.residual, bits=bits))
        streams: dict[float, str | None] = {
            density: f"density-{place}" if density else None
            for place, density in enumerate(self.setting.plan.densities)
        }
        streams[options.density] = "private"

        def make(path: Path) -> None:
            base = base_at(self.mixed_base(bits).path, path)
            for density, stream in streams.items():
                if stream is not None:
                    request, chosen = self._request(path, stream), _with(options, density=density)
                    write_residuals(request, base, chosen, self._columns)

        return Way(make, densities=streams)

    @cached_property
    def _columns(self) -> dict[str, Tensor]:
        """What residuals of the contaminated model count by, whatever its bits."""
        options = self._seeded(self.setting.plan.residual)
        layers = list(self.mixed_base(self.setting.plan.forget.bits).layers)
        return column_weights(self._request(self.mixed), options, layers)

    def _rounded(self, path: Path, bits: int) -> None:
        rounded(self.mixed, path, bits=bits)

    def _named(self) -> Path:
        """Only half of the secrets is named; what becomes of the rest tells what was unlearned."""
        data = self.setting.folder / "named.jsonl"
        write_jsonl(data, [asdict(self.made.canaries.members[index]) for index in self.made.named])
        return data

    def _seeded(self, options: Any) -> Any:
        return _with(options, seed=self.setting.seed)

    def _pruned(self, rule: Any) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            plain = path.with_name(f"{path.name}-plain")
            shutil.rmtree(plain, ignore_errors=True)
            density = self.setting.plan.forget.density
            prune(self.mixed, plain, self.made.windows[:64], rule=rule, density=density)
            self._round(plain, path)

        return make

    def _unlearned(self, objective: str) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            plain = path.with_name(f"{path.name}-plain")
            shutil.rmtree(plain, ignore_errors=True)
            options = _with(self.setting.plan.unlearn, objective=objective, seed=self.setting.seed)
            unlearn(self.mixed, self.made.data, plain, options=options, **self.common)
            self._round(plain, path)

        return make


def _with(options: Any, **changes: Any) -> Any:
    return options.model_copy(update=changes)
