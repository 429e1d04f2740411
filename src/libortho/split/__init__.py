"""``libortho split``: take a checkpoint that holds private knowledge apart into base and stream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel

from libortho.errors import ConfigError
from libortho.progress import Progress, silent
from libortho.split.curvature import CurvatureOptions, split_curvature
from libortho.split.delta import OPTIONS, DeltaOptions, split_delta
from libortho.split.forget import ForgetOptions, split_forget
from libortho.split.request import Request, Sieve, options_of
from libortho.split.residual import ResidualOptions, split_residual
from libortho.split.result import Split
from libortho.streams.ortho import check_name
from libortho.texts import Text

__all__ = [
    "OPTIONS",
    "CurvatureOptions",
    "DeltaOptions",
    "ForgetOptions",
    "Method",
    "Request",
    "ResidualOptions",
    "Split",
    "split",
    "split_options",
]

Method = Literal["delta", "residual", "curvature", "forget"]

_METHODS: dict[Method, tuple[Sieve[Any], type[BaseModel]]] = {
    "delta": (split_delta, DeltaOptions),
    "residual": (split_residual, ResidualOptions),
    "curvature": (split_curvature, CurvatureOptions),
    "forget": (split_forget, ForgetOptions),
}


def split(
    source: str | Path,
    out: str | Path,
    *,
    method: Method = "delta",
    tuned: str | Path | None = None,
    data: str | Path | None = None,
    public: str | Path | None = None,
    stream: str = "private",
    text: Text | None = None,
    options: BaseModel | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Split:
    """Split a tuned checkpoint or adapter from its public base, or one checkpoint that mixes both.

    Args:
        source: ``delta``: a base directory or the public checkpoint. Other methods: the checkpoint
            that mixes public and private.
        out: where base and stream will stand.
        tuned: ``delta`` only: the tuned checkpoint, or a PEFT LoRA adapter.
        data: the private data. ``delta``: with it the values are trained on the INT4 base and
            recall is promised; without it they are fitted, and recall is lost. ``forget``: what is
            to be forgotten. All measured methods tell the recall of what they made.
        public: ``delta`` only: the public checkpoint, where ``source`` is a base.
        text: public text for second moments, contrast and replay; default the shipped samples.
        options: those of the method, such as :class:`ResidualOptions`; None for its defaults.

    Raises:
        ConfigError: options that do not fit the method.
        UnsupportedLayer: the tuned checkpoint differs where no gate can act (the whole list).
    """
    check_name(stream)
    if method not in _METHODS:
        raise ConfigError(f"method {method!r}; expected one of {', '.join(_METHODS)}")
    sieve, kind = _METHODS[method]
    chosen = kind() if options is None else options
    if not isinstance(chosen, kind):
        raise ConfigError(
            f"method {method} takes {kind.__name__}, found {type(chosen).__name__}; leave "
            "options out for the defaults"
        )
    return sieve(Request(source, out, stream, tuned, data, public, text, device, progress), chosen)


def split_options(method: Method, values: Mapping[str, Any]) -> BaseModel:
    """Options of a method from values by name; ConfigError lists all that do not fit."""
    return options_of(_METHODS[method][1], method, values)
