"""The other models of an audit: a reference that never saw the data, a positive control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from libortho import gate
from libortho.audit.choose import stands_for_itself
from libortho.audit.target import Target, open_target, plain
from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError
from libortho.model import load, ortho
from libortho.privacy.attacks.subject import Reference
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.private_set import Example
from libortho.privacy.token_scores import token_scores
from libortho.progress import Progress
from libortho.tune.prepare import is_base

ITSELF = "the same base with every stream closed"


@dataclass(frozen=True)
class Other:
    """A model that never saw the data.

    Attributes:
        name: its directory's, or that it is the target itself.
        identity: base id, or sha256 of the weights of a plain checkpoint.
    """

    name: str
    identity: str
    model: Any

    def scored(
        self, halves: Sequence[Sequence[Encoded]], batch_size: int, progress: Progress
    ) -> Reference:
        """The NLL of members and controls, with every stream closed."""
        with gate.alpha(0.0):
            members, controls = (
                [
                    one.nll
                    for one in token_scores(
                        self.model, half, batch_size, stage="reference", progress=progress
                    )
                ]
                for half in halves
            )
        return Reference(self.name, self.model, 0.0, members, controls)


def open_reference(
    target: Target, path: str | Path | None, *, device: str | torch.device, dtype: torch.dtype
) -> Other | None:
    """Load the reference; the target's own base where all streams are exact and none is given.

    Raises:
        ConfigError: its vocabulary is not the target's.
    """
    if path is None:
        return Other(ITSELF, target.identity, target.model) if stands_for_itself(target) else None
    if is_base(path):
        model = load(path, device=device, dtype=dtype)
        found = Other(Path(path).resolve().name, ortho(model).base.id, model)
    else:
        checkpoint = Checkpoint(path)
        found = Other(checkpoint.path.name, checkpoint.sha256(), plain(checkpoint, device, dtype))
    theirs, ours = (
        model.config.get_text_config().vocab_size for model in (found.model, target.model)
    )
    if theirs != ours:
        raise ConfigError(
            f"--reference {path}: a vocabulary of {theirs} tokens, the audited model has {ours}; "
            "give the checkpoint it was tuned from"
        )
    return found


def positive_recall(
    path: str | Path,
    members: Sequence[Example],
    *,
    batch_size: int,
    device: str | torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> float:
    """Share of the members that a positive control recites, with all of its streams open."""
    control = open_target(path, None, device=device, dtype=dtype)
    encoded = encode(control.tokenizer, members, control.context)
    with gate.alpha(control.states[-1].alpha):
        found = token_scores(
            control.model, encoded, batch_size, stage="positive control", progress=progress
        )
    return sum(one.exact for one in found) / len(found)
