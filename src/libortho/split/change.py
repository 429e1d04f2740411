"""What private training changed: a tuned checkpoint, or an adapter over the public one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor

from libortho.checkpoint import Checkpoint, linear_layers, resolve
from libortho.errors import ConfigError
from libortho.quantize import GROUP_SIZE
from libortho.split.adapter import CONFIG, read_adapter
from libortho.split.tuned import TunedCheckpoint
from libortho.streams.base import BaseStream
from libortho.streams.layers import DenseLayer
from libortho.tune.prepare import is_base, plain_model, public_of


class Change(Protocol):
    """A privately tuned model in floating point."""

    def weight(self, name: str) -> Tensor:
        """The tuned weight of a linear, fp32 [N, K]."""

    def outside(self) -> dict[str, DenseLayer]:
        """The differences of parameters outside the converted linears, by name."""

    def inputs_from(self) -> Checkpoint:
        """The checkpoint whose forward gives the second moments of the layers' inputs."""

    def model(self, device: str | torch.device) -> Any:
        """The tuned model in stock transformers, float32."""


class TunedChange:
    """A tuned checkpoint, full or merged."""

    def __init__(self, base: BaseStream, tuned: str | Path) -> None:
        self._tuned = TunedCheckpoint(tuned, base)

    def weight(self, name: str) -> Tensor:
        return self._tuned.weight(name)

    def outside(self) -> dict[str, DenseLayer]:
        return self._tuned.outside()

    def inputs_from(self) -> Checkpoint:
        return self._tuned.checkpoint

    def model(self, device: str | torch.device) -> Any:
        return plain_model(self._tuned.checkpoint.path, device)


class AdapterChange:
    """A LoRA adapter; ``factors`` are its layers as they can be stored.

    Raises:
        UnsupportedLayer: no plain LoRA on converted linears (the whole list).
    """

    def __init__(self, base: BaseStream, adapter: str | Path, public: str | Path | None) -> None:
        self.factors = read_adapter(adapter, base.layers)
        self._adapter = Path(adapter)
        self._base = base
        self._public = public

    def weight(self, name: str) -> Tensor:
        weight = self.inputs_from().parameter(f"{name}.weight").float()
        if name in self.factors:
            weight += self.factors[name].dense()
        return weight

    def outside(self) -> dict[str, DenseLayer]:
        return {}

    def inputs_from(self) -> Checkpoint:
        public = public_of(self._base, self._public)
        if public is None:
            raise ConfigError(
                "an adapter is a change of the public checkpoint, which is needed "
                "here; give it with --public"
            )
        return Checkpoint(public)

    def model(self, device: str | torch.device) -> Any:
        public = plain_model(self.inputs_from().path, device)
        adapted = PeftModel.from_pretrained(public, str(self._adapter))
        return adapted.merge_and_unload().eval().requires_grad_(False)


def is_adapter(tuned: str | Path) -> bool:
    """Whether ``tuned`` is a directory that PEFT wrote, and no checkpoint."""
    return (Path(tuned) / CONFIG).is_file()


def check_adapter(source: str | Path, tuned: str | Path) -> None:
    """Refuse an adapter that cannot become a stream before anything is rounded or written.

    Args:
        source: a base directory, or the public checkpoint that will be rounded.

    Raises:
        UnsupportedLayer: as :func:`read_adapter`; a tuned checkpoint passes unread.
    """
    if not is_adapter(tuned):
        return
    if is_base(source):
        shapes = BaseStream.open(source).layers
    else:
        public = Checkpoint(source)
        shapes = linear_layers(public.skeleton(), GROUP_SIZE, public.naming)[0]
    read_adapter(tuned, shapes)


def read_change(
    base: BaseStream, tuned: str | Path, public: str | Path | None
) -> TunedChange | AdapterChange:
    """Read ``tuned``, whichever it is."""
    if is_adapter(tuned):
        return AdapterChange(base, tuned, public)
    return TunedChange(base, resolve(tuned))
