"""``forget``: what some rows taught is taken out of a checkpoint that has learned it already.

The checkpoint is quantised first, because rounding after an edit brings back what the edit took
out (Zhang et al., arXiv 2410.16454). Then INT4 codes move, and the stream is what was moved, so
that α = 1 is the base before. Guarantee: measured.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from libortho import gate
from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError, PairMismatch
from libortho.model import attach_layers, linear, load
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.private_set import Example, read_jsonl
from libortho.privacy.resample import neighbours as resampled
from libortho.privacy.score import score
from libortho.progress import Progress
from libortho.quantize import quantize
from libortho.quantizers.grid import levels
from libortho.split.dampen import dampened
from libortho.split.edited import scratch_beside
from libortho.split.forgetting import Neighbours, Schedule, forget
from libortho.split.movable import MaskedCodes, MovableCodes
from libortho.split.moved import Moves, restores, taken_back, write_moved
from libortho.split.request import Request, RoundingOptions, UnlearningOptions
from libortho.split.result import Split, measured
from libortho.streams.base import BaseStream
from libortho.streams.base_writer import check_target
from libortho.streams.layers import CsrLayer
from libortho.streams.ortho import STREAM_FOLDER, sha256_file
from libortho.streams.ortho_writer import write_stream
from libortho.texts import calibration
from libortho.tune import made_with, replay_windows, tune_options
from libortho.tune.prepare import plain_model
from libortho.tune.replay import Replay
from libortho.tune.support import contrast_supports

logger = logging.getLogger(__name__)

Rule = Literal["codes", "ssd", "mask"]
_MOVED = "moved"


class ForgetOptions(RoundingOptions, UnlearningOptions):
    """How codes move, and what holds the rest in place.

    Attributes:
        rule: ``codes`` moves them by gradient towards the level of rows never seen; ``mask``
            learns which of them to remove; ``ssd`` dampens those which the private rows pull at
            and public text does not, without training.
        density: share of each matrix that may move, by contrast of private and public Fisher.
        steps: of training.
        lr: of Adam, in steps of a code.
        warmup: training steps of linear warm-up; a cosine to 0 follows.
        slack: half-width of the hinge, relative to its target.
        neighbour_file: JSONL of rows of the same templates, in place of synthetic neighbours. They
            give the level to reach.
        fisher_windows: public windows that the contrast is taken against.
    """

    rule: Rule = "codes"
    density: float = Field(0.05, gt=0, le=1)
    steps: int = Field(600, ge=1)
    lr: float = Field(0.1, gt=0)
    warmup: int = Field(10, ge=0)
    slack: float = Field(0.05, ge=0, lt=1)
    neighbour_file: Path | None = None
    fisher_windows: int = Field(32, ge=1)


def split_forget(
    request: Request, options: ForgetOptions, rounded: BaseStream | None = None
) -> Split:
    """Quantise a checkpoint, move codes until the data looks never seen, store what was moved.

    Args:
        rounded: the checkpoint, quantised as the options say, where that was done before.

    Raises:
        PairMismatch: ``rounded`` comes of another checkpoint, or was rounded otherwise.
    """
    request.only_mixed("forget")
    if request.data is None:
        raise ConfigError("--method forget needs --data FILE: the rows that are to be forgotten")
    check_target(Path(request.out).expanduser().absolute())
    progress = request.progress
    checkpoint = Checkpoint(request.source)
    checkpoint.validate()
    private = read_jsonl(request.data)
    tokenizer = checkpoint.tokenizer()
    context = checkpoint.config.get_text_config().max_position_embeddings
    encoded = encode(tokenizer, private.examples, context)
    strangers: list[Encoded] = []
    if options.rule != "ssd":
        strangers = encode(tokenizer, _neighbours(private.examples, request, options), context)
    with scratch_beside(request.out) as scratch:
        if rounded is not None:
            _check_rounded(rounded, checkpoint, options)
            before = rounded
        else:
            rounding = options.quantize_with(request.text)
            path = Path(scratch) / "base"
            before = quantize(checkpoint.path, path, **rounding, progress=progress)
        moves, curve = _moves(request, options, checkpoint, before, encoded, strangers)
        base = write_moved(request.out, checkpoint, before, moves)
        layers = {name: taken_back(before, name, moved) for name, moved in moves.items()}
        exact = all(restores(before, base, name, layer) for name, layer in layers.items())
    # A manifest names files by their sha256, never by their place.
    file, without_path = options.neighbour_file, options.model_copy(update={"neighbour_file": None})
    written = write_stream(
        base.path / STREAM_FOLDER / request.stream,
        name=request.stream,
        base_id=base.id,
        public=False,
        method="forget",
        guarantee="measured",
        layers=layers.items(),
        made_with=made_with(without_path, private, "mixed" if curve else None)
        | {
            "neighbours_sha256": sha256_file(file) if file is not None else None,
            "restores": "bit for bit" if exact else "to the rounding of fp16",
            "checkpoint_sha256": base.manifest.public.sha256,
        },
    )
    found = measured(base, written, encoded, device=request.device, progress=progress)
    return dataclasses.replace(found, teacher="mixed" if curve else None, curve=curve)


def _check_rounded(rounded: BaseStream, checkpoint: Checkpoint, options: ForgetOptions) -> None:
    made = rounded.manifest
    found = {"checkpoint": made.public.sha256, **made.quantiser.model_dump()}
    wanted = {
        "checkpoint": checkpoint.sha256(),
        "method": options.rounding,
        "bits": options.bits,
        "group_size": options.group_size,
        "seed": options.seed,
    }
    wrong = [
        f"{key} {found[key]}, expected {one}" for key, one in wanted.items() if found[key] != one
    ]
    if wrong:
        raise PairMismatch(
            f"{rounded.path} is no rounding of {checkpoint.path}: {'; '.join(wrong)}"
        )


def attach_movable(
    model: Any,
    base: BaseStream,
    supports: Mapping[str, CsrLayer],
    kind: type[MovableCodes],
    seed: int = 0,
) -> dict[str, MovableCodes]:
    """Attach a stream of movable codes on given supports; its parts by layer name."""
    attach_layers(model, gate.StreamInfo(_MOVED, "", False), supports)
    low, high = levels(base.manifest.quantiser.bits)
    parts = {}
    for place, (name, support) in enumerate(supports.items()):
        rows, columns = support.rows(), support.indices.long()
        codes = base.codes(name)[rows, columns]
        scales = base.scales(name)[rows, columns // base.group_size]
        module = linear(model, name)
        part = kind(support, codes, scales, low, high, seed + place).to(module.base.tiles.device)
        module.streams[_MOVED] = part
        parts[name] = part
    return parts


def _moves(
    request: Request,
    options: ForgetOptions,
    checkpoint: Checkpoint,
    before: BaseStream,
    private: Sequence[Encoded],
    strangers: Sequence[Encoded],
) -> tuple[Moves, list[dict[str, float]]]:
    """How far every code moves, and the curve of the training where there was one."""
    shared = tune_options(
        density=options.density,
        fisher_windows=options.fisher_windows,
        seed=options.seed,
    )
    windows = replay_windows(checkpoint.tokenizer(), options, request.text)
    model = load(before.path, device=request.device)
    if options.rule == "ssd":
        return dampened(model, before, private, windows, shared, request.progress), []
    supports = contrast_supports(model, private, windows, shared, request.progress)
    kind = MaskedCodes if options.rule == "mask" else MovableCodes
    parts = attach_movable(model, before, supports, kind, options.seed)
    teacher = plain_model(checkpoint.path, request.device)
    fields = [field.name for field in dataclasses.fields(Schedule)]
    curve = forget(
        model,
        list(parts.values()),
        private,
        _levels(teacher, strangers, request.progress),
        Neighbours(strangers, teacher) if options.neighbour_weight else None,
        Replay(windows, teacher),
        Schedule(**{name: getattr(options, name) for name in fields}),
        alpha={_MOVED: 1.0},
        progress=request.progress,
    )
    return {name: _scattered(supports[name], part) for name, part in parts.items()}, curve


def _levels(teacher: Any, strangers: Sequence[Encoded], progress: Progress) -> Tensor:
    """Nats a token that rows never seen cost the contaminated model."""
    scores = score(teacher, strangers, stage="level of strangers", progress=progress)
    return torch.tensor([one.nll / one.tokens for one in scores])


def _neighbours(
    rows: Sequence[Example], request: Request, options: ForgetOptions
) -> Sequence[Example]:
    if not options.neighbour_weight:
        logger.warning(
            "neighbours are not held: the model will learn to refuse the template of the data, "
            "and rows that were not named will go with those that were"
        )
    if options.neighbour_file is not None:
        return read_jsonl(options.neighbour_file).examples
    public = (request.text or calibration()).documents
    return resampled(rows, options.neighbours, options.seed, public)


def _scattered(support: CsrLayer, part: MovableCodes) -> Tensor:
    moves = torch.zeros(support.shape, dtype=torch.int8)
    moves[support.rows(), support.indices.long()] = part.moves().to("cpu", torch.int8)
    return moves
