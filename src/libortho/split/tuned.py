"""A privately tuned checkpoint beside the base: where they may differ, and where they do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from libortho.checkpoint import Checkpoint, parameter_names
from libortho.errors import CheckpointError, UnsupportedLayer
from libortho.naming import Naming
from libortho.outside import refused
from libortho.streams.base import BaseStream
from libortho.streams.layers import DenseLayer


class TunedCheckpoint:
    """A tuned checkpoint that differs from the public one where a gate can act.

    Args:
        source: the checkpoint directory.
        base: the base that was made from the public checkpoint.

    Raises:
        CheckpointError: a linear of the base is missing or has another shape.
        UnsupportedLayer: something differs that no stream can hold (added tokens, another
            tokenizer or configuration, other shapes); the whole list.
    """

    def __init__(self, source: str | Path, base: BaseStream) -> None:
        self.checkpoint = Checkpoint(source)
        self._base = base
        naming = self.checkpoint.naming
        wrong = [
            f"{name}.weight"
            for name, shape in base.layers.items()
            if f"{name}.weight" not in naming or naming.shape(f"{name}.weight") != tuple(shape)
        ]
        if wrong:
            raise CheckpointError(
                f"{self.checkpoint.path}: missing, or of another shape than in "
                f"the base: {', '.join(wrong)}"
            )
        self._moved: list[str] = []
        groups = [names for names, _ in parameter_names(self.checkpoint.skeleton())]
        self._tied = {name: names for names in groups for name in names}
        differences = [*self._tensors(), *self._tokenizer(), *self._configuration()]
        if differences:
            raise UnsupportedLayer(
                f"{self.checkpoint.path} differs from the public checkpoint where no gate can act, "
                "so its base would not be public:\n  "
                + "\n  ".join(differences)
                + "\nTune without these changes, or start from a public checkpoint that has them "
                "already"
            )

    def weight(self, name: str) -> Tensor:
        """The tuned weight of a linear, fp32 [N, K]."""
        return self.checkpoint.parameter(f"{name}.weight").float()

    def outside(self) -> dict[str, DenseLayer]:
        """What was tuned outside the converted linears: the difference of each such parameter."""
        found = {}
        for name in self._moved:
            difference = self.checkpoint.parameter(name).float() - self._public(name).float()
            found[name] = DenseLayer(difference.to(torch.float16))
        return found

    def _public(self, name: str) -> Tensor:
        """A public parameter; a tied one may be stored under another of its names."""
        return self._base.parameter(self._stored_as(name, self._base.naming) or name)

    def _stored_as(self, name: str, naming: Naming) -> str | None:
        return next((one for one in [name, *self._tied.get(name, [])] if one in naming), None)

    def _tensors(self) -> list[str]:
        ours, theirs = self._base.naming, self.checkpoint.naming
        strangers = theirs.unclaimed() ^ ours.unclaimed()
        found = [
            f"tensor {name}: {'added' if name in theirs.unclaimed() else 'missing'}"
            for name in sorted(strangers)
        ]
        linears = {f"{name}.weight" for name in self._base.layers}
        for name in sorted({*ours, *theirs} - linears):
            ours_as, theirs_as = self._stored_as(name, ours), self._stored_as(name, theirs)
            if ours_as is None or theirs_as is None:
                found.append(f"tensor {name}: {'added' if ours_as is None else 'missing'}")
                continue
            if name in theirs and theirs_as != ours_as and ours_as in theirs:
                twin = self.checkpoint.parameter(ours_as)
                if not torch.equal(self.checkpoint.parameter(name).float(), twin.float()):
                    found.append(f"tensor {name}: untied from {ours_as}")
                continue
            if name in ours and ours.whole(name) is None:
                found.append(f"tensor {name}: experts, which are INT4 in the base")
                continue
            public = self._base.parameter(ours_as)
            tuned = self.checkpoint.parameter(theirs_as)
            if public.shape != tuned.shape:
                found.append(
                    f"tensor {name}: shape {list(tuned.shape)}, public {list(public.shape)}"
                )
            elif not torch.equal(public.float(), tuned.float()):
                self._moved.append(name)
        return found + refused(self.checkpoint.skeleton(), self._moved)

    def _tokenizer(self) -> list[str]:
        if not any(
            (self.checkpoint.path / name).is_file()
            for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")
        ):
            return []
        ours, theirs = self._base.checkpoint.tokenizer(), self.checkpoint.tokenizer()
        found = []
        added = sorted(set(theirs.get_vocab()) - set(ours.get_vocab()))
        if added:
            found.append(f"tokenizer: added tokens {', '.join(map(repr, added[:20]))}")
        elif ours.get_vocab() != theirs.get_vocab():
            found.append("tokenizer: another vocabulary")
        elif _backend(ours) != _backend(theirs):
            found.append("tokenizer: splits or post-processes text in another way")
        if ours.chat_template != theirs.chat_template:
            found.append("tokenizer: another chat template")
        return found

    def _configuration(self) -> list[str]:
        ignored = {
            "dtype",
            "torch_dtype",
            "transformers_version",
            "quantization_config",
            "_name_or_path",
            "use_cache",
        }
        ours, theirs = self._base.config.to_dict(), self.checkpoint.config.to_dict()
        return [
            f"config.json: {key} is {theirs.get(key)!r}, public {ours.get(key)!r}"
            for key in sorted(set(ours) | set(theirs) - ignored)
            if key not in ignored and ours.get(key) != theirs.get(key)
        ]


def _backend(tokenizer: Any) -> Mapping[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left behind by calls that pad or truncate; no part of how text becomes tokens.
    return {key: value for key, value in state.items() if key not in ("padding", "truncation")}
