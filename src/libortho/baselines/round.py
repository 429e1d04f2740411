"""A checkpoint whose linears were rounded and brought back: bases that INT4 files cannot hold."""

from __future__ import annotations

from pathlib import Path

from libortho.checkpoint import Checkpoint, linear_layers
from libortho.errors import ConfigError
from libortho.split.edited import write_edited
from libortho.streams.base_writer import check_target


def rounded(source: str | Path, out: str | Path, *, bits: int = 8, group_size: int = 128) -> Path:
    """Round every converted linear to nearest, absmax per group, and write it in floating point.

    Raises:
        ConfigError: ``bits`` is not in 2..8, or ``out`` is taken.
    """
    if not 2 <= bits <= 8:
        raise ConfigError(f"bits = {bits}; expected 2 to 8")
    target = Path(out).expanduser().absolute()
    check_target(target)
    checkpoint = Checkpoint(source)
    layers, _ = linear_layers(checkpoint.skeleton(), group_size, checkpoint.naming)
    high = 2 ** (bits - 1) - 1
    weights = {}
    for name, (rows, _) in layers.items():
        groups = checkpoint.parameter(f"{name}.weight").float().view(rows, -1, group_size)
        scale = groups.abs().amax(2, keepdim=True).clamp(min=1e-12) / high
        codes = (groups / scale).round().clamp(-high - 1, high)
        weights[f"{name}.weight"] = (codes * scale).view(rows, -1)
    return write_edited(checkpoint, weights, target)
