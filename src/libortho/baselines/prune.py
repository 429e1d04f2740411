"""Pruning a checkpoint: as many weights removed as a stream would hold, with no data to forget."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from libortho import sieve
from libortho.calibrate import hessians
from libortho.checkpoint import Checkpoint, linear_layers
from libortho.errors import ConfigError
from libortho.progress import Progress, silent
from libortho.split.edited import write_edited
from libortho.streams.base_writer import check_target

PruneRule = Literal["wanda", "sparsegpt"]
_GROUP = 128


def prune(
    source: str | Path,
    out: str | Path,
    windows: Tensor,
    *,
    rule: PruneRule = "wanda",
    density: float = 0.02,
    progress: Progress = silent,
) -> Path:
    """Write a checkpoint without ``density`` of the weights of every converted linear.

    Args:
        windows: public text for the second moments, int64 [n, T].

    Raises:
        ConfigError: the density is not in (0, 1), or ``out`` is taken.
    """
    if not 0 < density < 1:
        raise ConfigError(f"density {density}: expected a number in (0, 1)")
    target = Path(out).expanduser().absolute()
    check_target(target)
    checkpoint = Checkpoint(source)
    layers, _ = linear_layers(checkpoint.skeleton(), _GROUP, checkpoint.naming)
    weights = {}
    for name, moment in hessians(checkpoint, windows, list(layers), progress=progress):
        weight = checkpoint.parameter(f"{name}.weight").float()
        weights[f"{name}.weight"] = (
            sieve.wanda(weight, moment, density)
            if rule == "wanda"
            else sieve.sparsegpt(weight, sieve.damped(moment), density)
        )
    return write_edited(checkpoint, weights, target)
