"""Which tensors on disk a parameter of a model is made of.

transformers may know a parameter under another name than the checkpoint (GPT-NeoX's ``lm_head`` is
stored as ``embed_out``), or make one parameter of several tensors (experts are stacked). Its own
rules are asked here, so that a base keeps the names and shapes which stock loaders expect.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from libortho.errors import CheckpointError

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class _Made:
    """How transformers makes parameters of the tensors on disk.

    Attributes:
        first: the parameter by which transformers calls the operation.
        converter: None where one tensor is the parameter.
        parts: (tensor on disk, pattern of the converter that it matched).
    """

    first: str
    converter: WeightConverter | None
    parts: list[tuple[str, str | None]]


class Naming:
    """Parameters and buffers of a model, and the tensors on disk that they come from.

    Args:
        skeleton: a transformers model, weights on ``meta``.
        stored: shape of every tensor on disk, by name.

    Raises:
        CheckpointError: transformers cannot combine the tensors (all such parameters are named).
    """

    def __init__(self, skeleton: Any, stored: Mapping[str, tuple[int, ...]]) -> None:
        self._skeleton = skeleton
        self._stored = set(stored)
        self._made: dict[str, _Made] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        problems = []
        for made in _grouped(skeleton, stored):
            if made.converter is None:
                self._made[made.first] = made
                self._shapes[made.first] = stored[made.parts[0][0]]
                continue
            try:
                targets = self._convert(made, lambda name: torch.empty(stored[name], device="meta"))
            except (RuntimeError, ValueError, IndexError, KeyError) as error:
                problems.append(f"{made.first}: {error}")
                continue
            self._made |= dict.fromkeys(targets, made)
            self._shapes |= {name: tuple(tensor.shape) for name, tensor in targets.items()}
        if problems:
            raise CheckpointError("transformers cannot make " + "; ".join(problems) + ".")

    def __contains__(self, parameter: str) -> bool:
        return parameter in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def unclaimed(self) -> set[str]:
        """The tensors on disk that no parameter or buffer of the model is made of."""
        used = {name for made in self._made.values() for name, _ in made.parts}
        return self._stored - used

    def shape(self, parameter: str) -> tuple[int, ...]:
        """The shape of a parameter as the tensors on disk make it."""
        return self._shapes[parameter]

    def parts(self, parameter: str) -> list[str]:
        """The tensors on disk that a parameter is made of."""
        return [name for name, _ in self._made[parameter].parts]

    def whole(self, parameter: str) -> str | None:
        """The one tensor on disk that is the parameter, unchanged; None if there is no such."""
        made = self._made.get(parameter)
        return None if made is None or made.converter is not None else made.parts[0][0]

    def build(self, parameter: str, read: Read) -> Tensor:
        """Make a parameter of what ``read`` gives for the tensors on disk."""
        made = self._made[parameter]
        if made.converter is None:
            return read(made.parts[0][0])
        return self._convert(made, read)[parameter]

    def _convert(self, made: _Made, read: Read) -> dict[str, Tensor]:
        converter = copy.deepcopy(made.converter)
        assert converter is not None
        for name, pattern in made.parts:
            converter.add_tensor(made.first, name, pattern, read(name))
        found = converter.convert(made.first, model=self._skeleton, config=self._skeleton.config)
        return {
            name: tensor[0] if isinstance(tensor, list) else tensor
            for name, tensor in found.items()
        }


def _grouped(skeleton: Any, stored: Iterable[str]) -> Iterator[_Made]:
    """The order of the tensors, and what claims them, are those of transformers' own loader."""
    rules = get_model_conversion_mapping(skeleton)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    wanted = skeleton.state_dict()
    prefix = skeleton.base_model_prefix
    groups: dict[str, _Made] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = rename_source_key(name, [], [], prefix, wanted)
        if target in wanted:
            rule = None if pattern is None else by_pattern[pattern]
            groups.setdefault(target, _Made(target, rule, [])).parts.append((name, pattern))
    yield from groups.values()


def expert_matrices(skeleton: Any, naming: Naming) -> dict[str, list[str]]:
    """Stacks of expert matrices that are stored one matrix a tensor.

    Returns:
        ``{parameter: layers on disk}``: the 3-D parameters that transformers stacks, and the
        names, without ``.weight``, of the matrices [N, K] that they are stacked of.
    """
    found = {}
    for name, parameter in skeleton.named_parameters():
        if parameter.dim() != 3 or name not in naming or naming.whole(name) is not None:
            continue
        parts = naming.parts(name)
        if all(part.endswith(".weight") for part in parts):
            found[name] = [part.removesuffix(".weight") for part in parts]
    return found
