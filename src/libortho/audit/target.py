"""The model under audit: a base with streams in several states of its gate, or any checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from libortho import gate
from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError
from libortho.model import load, ortho
from libortho.streams.ortho import MANIFEST, STREAM_FOLDER, OrthoStream
from libortho.tune.prepare import is_base

ALPHAS = ("0", "1")
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class State:
    """One setting of the gate.

    Attributes:
        label: as shown, such as ``α = 0``.
        alpha: what the gate is set to.
        opened: sum of alpha over the private streams.
    """

    label: str
    alpha: gate.Setting
    opened: float


@dataclass(frozen=True)
class Target:
    """A loaded model and the states it is attacked in.

    Attributes:
        name: the directory's name.
        identity: base id, or sha256 of the weights of a plain checkpoint.
        streams: id of every stream, by name.
        guarantees: of its private streams, by name; empty for a plain checkpoint.
        states: ordered from closed to open.
    """

    name: str
    identity: str
    model: Any
    tokenizer: Any
    context: int | None
    streams: dict[str, str]
    guarantees: dict[str, str]
    states: Sequence[State]

    @property
    def judged(self) -> list[State]:
        """The states in which nothing private should be known: those that open the least."""
        return [one for one in self.states if one.opened == self.states[0].opened]


def open_target(
    path: str | Path,
    alphas: Sequence[str] | None,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Target:
    """Load a directory written by libortho with all its streams, or any other checkpoint.

    Args:
        alphas: settings in the form of the command line; by default 0 and 1 where a stream is.

    Raises:
        ConfigError: alpha is given for a checkpoint that has no gate.
        CheckpointError: the directory is no checkpoint in floating point.
        AlphaError: a setting is malformed, ambiguous, or names a stream that is not there.
    """
    if not is_base(path):
        if alphas:
            raise ConfigError(
                f"{path} was not written by libortho and has no gate: leave --ortho-alpha out"
            )
        checkpoint = Checkpoint(path)
        model = plain(checkpoint, device, dtype)
        state = State(AS_IT_IS, 0.0, 0.0)
        return Target(
            checkpoint.path.name,
            checkpoint.sha256(),
            model,
            checkpoint.tokenizer(),
            getattr(checkpoint.config, "max_position_embeddings", None),
            {},
            {},
            [state],
        )
    found = sorted((Path(path) / STREAM_FOLDER).glob(f"*/{MANIFEST}"))
    streams = [OrthoStream.open(file.parent) for file in found]
    model = load(path, [stream.path for stream in streams], device=device, dtype=dtype)
    infos = ortho(model).attached
    states: dict[str, State] = {}
    for text in alphas or (ALPHAS if streams else ALPHAS[:1]):
        setting = gate.parse(text)
        table = gate.resolve(setting, infos, 1)[:, 0].tolist()
        opened = sum(a for a, info in zip(table, infos, strict=True) if not info.public)
        states[f"α = {text}"] = State(f"α = {text}", setting, opened)
    base = ortho(model).base
    return Target(
        Path(path).resolve().name,
        base.id,
        model,
        base.checkpoint.tokenizer(),
        getattr(model.config, "max_position_embeddings", None),
        {s.name: s.id for s in streams},
        {s.name: s.manifest.guarantee for s in streams if not s.manifest.public},
        sorted(states.values(), key=lambda state: state.opened),
    )


def plain(checkpoint: Checkpoint, device: str | torch.device, dtype: torch.dtype) -> Any:
    """Any checkpoint in floating point, in stock transformers.

    Raises:
        CheckpointError: it is quantised, or lacks weights.
    """
    checkpoint.validate()
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=dtype)
    return model.eval().requires_grad_(False).to(device)
