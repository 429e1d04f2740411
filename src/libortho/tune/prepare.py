"""What every training needs before its first step: a base at its place, a teacher, public text."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from libortho.checkpoint import Checkpoint, resolve
from libortho.errors import ConfigError, LibOrthoError, PairMismatch
from libortho.model import load
from libortho.naming import expert_matrices
from libortho.streams.base import BaseStream
from libortho.streams.manifest import MANIFEST_FILE
from libortho.streams.ortho import MANIFEST, STREAM_FOLDER, OrthoStream

logger = logging.getLogger(__name__)

REFERENCE = "reference"

Teacher = Literal["public", "base", "tuned"]


def base_at(source: str | Path, out: str | Path) -> BaseStream:
    """Have a base stand at ``out``: a copy of ``source``, or a public checkpoint quantised.

    Nothing of an existing base changes. A public checkpoint is quantised by a process of its own,
    which is given that checkpoint and nothing else. Public streams of ``source`` come along.

    Raises:
        ConfigError: ``out`` holds something else than this base, or the base was made from a
            checkpoint that mixes public and private.
    """
    target = Path(out)
    if not is_base(source):
        if is_base(target):
            return _same_source(source, target)
        _quantise_apart(source, target)
        return BaseStream.open(target)
    base = BaseStream.open(source)
    _check_public(base)
    if is_base(target):
        there = BaseStream.open(target)
        if there.id != base.id:
            raise ConfigError(
                f"{target} holds base {there.id[:12]}…, {source} is "
                f"{base.id[:12]}…; choose another output directory"
            )
        return there
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty and no base; choose another output directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        for name in [*base.manifest.files, MANIFEST_FILE]:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base.path / name, scratch / name)
        for stream in public_streams(base):
            shutil.copytree(stream.path, scratch / STREAM_FOLDER / stream.name)
        scratch.chmod(0o755)
        if target.exists():
            target.rmdir()
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return BaseStream.open(target)


def is_base(path: str | Path) -> bool:
    """Whether a directory written by ``libortho quantize`` stands there."""
    return (Path(path) / MANIFEST_FILE).is_file()


def public_streams(base: BaseStream) -> list[OrthoStream]:
    """The public streams that lie beside a base, by name."""
    return [stream for stream in _streams(base) if stream.manifest.public]


def _streams(base: BaseStream) -> list[OrthoStream]:
    found = sorted((base.path / STREAM_FOLDER).glob(f"*/{MANIFEST}"))
    return [OrthoStream.open(file.parent) for file in found]


def _check_public(base: BaseStream) -> None:
    """Refuse a base split from a mixed checkpoint: it knows private things by itself."""
    mixed = [s.manifest for s in _streams(base) if s.manifest.guarantee == "measured"]
    if mixed:
        made = ", ".join(f"{one.name} (method {one.method})" for one in mixed)
        raise ConfigError(
            f"{base.path} was made from a checkpoint that mixes public and private: {made}. A "
            "stream over it could not be exact; quantise the public checkpoint and take that base"
        )


@dataclass
class Ground:
    """A base loaded for training with its public streams open.

    Attributes:
        alpha: opens the public streams at 1.
        requires: their ids.
    """

    base: BaseStream
    model: PreTrainedModel
    tokenizer: Any
    alpha: dict[str, float]
    requires: list[str]


def ground(base: BaseStream, device: str | torch.device) -> Ground:
    """Load ``base`` in float32 with its public streams attached.

    Experts, on which no stream acts, are named in a warning.
    """
    if base.manifest.experts:
        stacks = expert_matrices(base.checkpoint.skeleton(), base.naming)
        logger.warning(
            "no stream acts on experts, and these stay as they are in the base: %s",
            ", ".join(stacks),
        )
    streams = public_streams(base)
    model = load(base.path, [stream.path for stream in streams], device=device)
    return Ground(
        base,
        model,
        base.checkpoint.tokenizer(),
        {stream.name: 1.0 for stream in streams},
        [stream.id for stream in streams],
    )


def teacher(
    base: BaseStream, public: str | Path | None, device: str | torch.device
) -> tuple[Any, Teacher]:
    """The model whose logits the replay keeps to: the public one if it can be had, else the base.

    Raises:
        PairMismatch: as :func:`public_of`.
    """
    source = public_of(base, public)
    if source is not None:
        return plain_model(resolve(source), device), "public"
    logger.warning(
        "no public checkpoint was given (--public): the INT4 base itself is the teacher "
        "of the replay, which costs perplexity"
    )
    return load(base.path, device=device), "base"


def public_of(base: BaseStream, public: str | Path | None) -> str | Path | None:
    """The public checkpoint that ``base`` was made from, if it can be had.

    Raises:
        PairMismatch: ``public`` has other weights than those which the base was made from.
    """
    source = public
    if source is None and base.manifest.public.name == REFERENCE:
        source = REFERENCE
    if source is None:
        return None
    found = Checkpoint(source).sha256()
    if found == base.manifest.public.sha256:
        return source
    if public is None:
        return None
    raise PairMismatch(
        f"{public}: sha256 of the weights is {found[:12]}…, the base was made from "
        f"{base.manifest.public.sha256[:12]}…; give that checkpoint"
    )


def plain_model(path: str | Path, device: str | torch.device) -> Any:
    """A checkpoint in stock transformers, float32, without gradients."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval().requires_grad_(False).to(device)


def repeated(example_ids: Sequence[Sequence[int]], count: int, length: int) -> Tensor:
    """Join sequences end to end, again and again, into ``count`` windows of ``length``."""
    joined = [token for ids in example_ids for token in ids]
    if not joined:
        raise ConfigError("there are no private examples")
    needed = count * length
    stream = (joined * (needed // len(joined) + 1))[:needed]
    return torch.tensor(stream).reshape(count, length)


def _same_source(source: str | Path, target: Path) -> BaseStream:
    there = BaseStream.open(target)
    found = Checkpoint(source).sha256()
    if there.manifest.public.sha256 != found:
        raise ConfigError(
            f"{target} holds a base of other weights than {source}; choose another output directory"
        )
    return there


def _quantise_apart(source: str | Path, target: Path) -> None:
    command = [sys.executable, "-m", "libortho", "quantize", str(source), "-o", str(target)]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if finished.returncode:
        raise LibOrthoError(f"quantising {source} failed: {finished.stderr.strip()[-2000:]}")
