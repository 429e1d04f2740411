"""``libortho split``: take a checkpoint that holds private knowledge apart into base and stream."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from libortho.errors import ConfigError
from libortho.progress import Progress, silent
from libortho.split.delta import OPTIONS, split_delta
from libortho.split.residual import split_residual
from libortho.split.result import Split
from libortho.streams.ortho import check_name
from libortho.texts import Text
from libortho.tune.options import TuneOptions

__all__ = ["OPTIONS", "Method", "Split", "split"]

Method = Literal["delta", "residual"]


def split(
    source: str | Path,
    out: str | Path,
    *,
    method: Method = "delta",
    tuned: str | Path | None = None,
    data: str | Path | None = None,
    public: str | Path | None = None,
    stream: str = "private",
    sparse: bool = False,
    text: Text | None = None,
    options: TuneOptions = OPTIONS,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Split:
    """Split a tuned checkpoint or adapter from its public base, or one checkpoint by residuals.

    Args:
        source: ``delta``: a base directory or the public checkpoint. ``residual``: the checkpoint
            that mixes public and private.
        out: where base and stream will stand.
        tuned: ``delta`` only: the tuned checkpoint, or a PEFT LoRA adapter.
        data: ``delta`` only: the private data. With it the values are trained on the INT4 base
            and recall is promised; without it they are fitted, and recall is lost.
        public: the public checkpoint, where ``source`` is a base.
        sparse: turn an adapter into a sparse stream instead of keeping its factors.
        text: public text for second moments, contrast and replay; default the shipped samples.

    Raises:
        ConfigError: options that do not fit the method.
        UnsupportedLayer: the tuned checkpoint differs where no gate can act (the whole list).
    """
    check_name(stream)
    if method == "residual":
        if tuned is not None or data is not None:
            raise ConfigError("--method residual takes one checkpoint: no --tuned and no --data")
        return split_residual(
            source, out, stream=stream, text=text, options=options, progress=progress
        )
    if tuned is None:
        raise ConfigError("--method delta needs --tuned CHECKPOINT or --tuned ADAPTER")
    return split_delta(
        source,
        out,
        tuned=tuned,
        data=data,
        public=public,
        stream=stream,
        sparse=sparse,
        text=text,
        options=options,
        device=device,
        progress=progress,
    )
