"""Whether α = 1 is the contaminated model again, read off the weights on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from libortho.checkpoint import Checkpoint
from libortho.streams.base import BaseStream
from libortho.streams.ortho import STREAM_FOLDER, OrthoStream

_STREAM = "private"


def codes_unlike(moved: Path, before: Path) -> tuple[int, int]:
    """INT4 codes, and weights, that base and stream together do not give back.

    Args:
        moved: a base whose codes were moved, with the stream of what was moved.
        before: the base before.

    Returns:
        codes that differ after rounding to the scale, and weights that are not equal bit for bit.
    """
    base, old = BaseStream.open(moved), BaseStream.open(before)
    stream = _stream(moved)
    codes = weights = 0
    for name in old.layers:
        missing = _dense(stream, name)
        restored = base.weight(name) + missing
        scales = old.scales(name).float().repeat_interleave(old.group_size, 1)
        # An all-zero group has a scale that says nothing; its weights are compared all the same.
        found = torch.where(scales > 0, restored / scales, restored).round()
        codes += int((found != old.codes(name).float()).sum())
        weights += int((restored != old.weight(name)).sum())
    return codes, weights


def beyond_half_precision(whole: Path, mixed: Path) -> int:
    """Weights that base and stream do not give back to the rounding of an fp16 difference.

    The bound is 2⁻¹¹·|W − base| + 2⁻²⁵: eleven bits of the difference, or fp16's smallest step.
    """
    base, checkpoint = BaseStream.open(whole), Checkpoint(mixed)
    stream = _stream(whole)
    beyond = 0
    for name in base.layers:
        weight, rounded = checkpoint.parameter(f"{name}.weight").float(), base.weight(name)
        error = (rounded.double() + _dense(stream, name).double() - weight.double()).abs()
        bound = 2.0**-11 * (weight - rounded).double().abs() + 2.0**-25
        beyond += int((error > bound).sum())
    return beyond


def _stream(path: Path) -> OrthoStream:
    return OrthoStream.open(path / STREAM_FOLDER / _STREAM)


def _dense(stream: OrthoStream, name: str) -> torch.Tensor:
    if name not in stream.manifest.layers:
        return torch.zeros(())
    return stream.layer(name).dense()
