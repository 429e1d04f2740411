"""``residual``: base = Q(W), ortho = the top residuals by Optimal Brain Surgeon impact.

The seed of the idea and its honest negative result: rounding does not remove what training put
in, so the base still recites. Guarantee: measured, and expected to leak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torch import Tensor

from libortho import sieve
from libortho.calibrate import hessians
from libortho.checkpoint import Checkpoint
from libortho.progress import Progress, silent
from libortho.quantize import quantize
from libortho.split.result import Split
from libortho.streams.base import BaseStream
from libortho.streams.layers import CsrLayer, csr_from_dense
from libortho.streams.ortho import STREAM_FOLDER, write_stream
from libortho.texts import Text
from libortho.tune import made_with, replay_windows
from libortho.tune.options import TuneOptions


def split_residual(
    source: str | Path,
    out: str | Path,
    *,
    stream: str,
    text: Text | None,
    options: TuneOptions,
    progress: Progress = silent,
) -> Split:
    """Quantise a checkpoint and keep its largest rounding residuals in a stream."""
    checkpoint = Checkpoint(source)
    base = quantize(checkpoint.path, out, text=text, progress=progress)
    windows = replay_windows(checkpoint.tokenizer(), options, text)
    moments = hessians(checkpoint, windows, list(base.layers), progress=progress)

    def weight(name: str) -> Tensor:
        return checkpoint.tensor(f"{name}.weight").float()

    written = write_stream(
        base.path / STREAM_FOLDER / stream,
        name=stream,
        base_id=base.id,
        public=False,
        method="residual",
        guarantee="measured",
        layers=top_residuals(weight, base, moments, options.density),
        made_with=made_with(options, None, None),
    )
    return Split(base, written)


def top_residuals(
    weight: Callable[[str], Tensor],
    base: BaseStream,
    moments: Iterable[tuple[str, Tensor]],
    density: float,
) -> Iterator[tuple[str, CsrLayer]]:
    """Per layer the residuals W − Q(W) of highest (W − Q)²_ij / [H⁻¹]_jj.

    Args:
        weight: the checkpoint's weight by layer name, fp32 [N, K].
        base: its own INT4 base.
        moments: (layer name, H [K, K]).
        density: nnz / numel of each layer.
    """
    for name, second_moment in moments:
        missed = weight(name) - base.weight(name)
        score = sieve.obs_impact(missed, sieve.damped(second_moment))
        mask = sieve.top_k(score, round(score.numel() * density))
        yield name, csr_from_dense(missed, mask)
