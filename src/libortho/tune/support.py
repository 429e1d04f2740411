"""The support of a private stream: where the private data pulls and the public text does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from libortho import sieve
from libortho.errors import NumericsError
from libortho.model import linears
from libortho.privacy.encode import Encoded, pad
from libortho.progress import Progress, silent
from libortho.streams.layers import CsrLayer, csr_from_dense
from libortho.tune.fisher import fisher, groups
from libortho.tune.options import TuneOptions

_BATCH = 8


def contrast_supports(
    model: Any,
    private: Sequence[Encoded],
    public: Tensor,
    options: TuneOptions,
    progress: Progress = silent,
) -> dict[str, CsrLayer]:
    """An all-zero CSR layer per converted linear, ``options.density`` of the weights in all.

    Args:
        model: a converted model; the caller sets α.
        private: the private examples.
        public: public windows, int64 [n, T]; ``options.fisher_windows`` of them are used.

    Raises:
        NumericsError: layers that the private data does not reach (their Fisher is all zero), or
            whose contrast is not finite; all of them are named.
    """
    scores: dict[str, Tensor] = {}
    problems: list[str] = []
    supports: dict[str, CsrLayer] = {}
    windows = public[: options.fisher_windows]
    for name, inside, outside in fishers(model, private, windows, progress):
        score = sieve.contrast(inside, outside)
        if not bool(inside.any()):
            problems.append(f"the private data has no gradient in {name}")
        elif not bool(torch.isfinite(score).all()):
            problems.append(f"the contrast of private and public gradients overflows in {name}")
        elif options.budget == "global":
            scores[name] = score
        elif not problems:
            # Nothing compares across layers: take the support now, so that scores need not stay.
            counts = sieve.budget({name: score.numel()}, options.density, {}, "uniform")
            supports[name] = _empty(score, counts[name])
    if problems:
        raise NumericsError("; ".join(problems))
    if options.budget == "global":
        sizes = {name: score.numel() for name, score in scores.items()}
        counts = sieve.budget(sizes, options.density, scores, "global")
        supports = {name: _empty(score, counts[name]) for name, score in scores.items()}
    return supports


def fishers(
    model: Any, private: Sequence[Encoded], windows: Tensor, progress: Progress = silent
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Per converted linear: its name, Σg² over private examples and Σg² over public windows.

    Args:
        model: a converted model; the caller sets α.
        windows: int64 [n, T].
    """
    for part in groups(model, list(linears(model))):
        inside = fisher(
            model,
            part,
            _examples(private),
            stage="private Fisher",
            total=len(private),
            progress=progress,
        )
        outside = fisher(
            model,
            part,
            _windows(windows),
            stage="public Fisher",
            total=len(windows),
            progress=progress,
        )
        for name in part:
            yield name, inside.pop(name), outside.pop(name)


def _empty(score: Tensor, count: int) -> CsrLayer:
    mask = sieve.top_k(score, count).cpu()
    return csr_from_dense(torch.zeros(mask.shape), mask)


def _examples(private: Sequence[Encoded]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for start in range(0, len(private), _BATCH):
        batch = pad(private[start : start + _BATCH])
        position = torch.arange(batch.input_ids.shape[1])
        wanted = (position >= batch.prompt_lengths[:, None]) & (batch.attention_mask == 1)
        yield batch.input_ids, batch.attention_mask, wanted


def _windows(windows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for chunk in windows.split(_BATCH):
        everything = torch.ones_like(chunk)
        yield chunk, everything, everything.bool()
