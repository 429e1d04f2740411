"""Calibration: public text, cut in windows, walked through a model one decoder block at a time.

The blocks run in float32. Only one block's weights are in memory; what lies between blocks are
the hidden states of all windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from libortho.checkpoint import Checkpoint, block_names
from libortho.errors import CheckpointError, NumericsError
from libortho.progress import Progress, silent

TOKENS_AT_ONCE = 2048

GetWeight = Callable[[str], Tensor]


@dataclass(frozen=True)
class _Call:
    """What a block is called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _ReachedError(Exception):
    """Leaves a forward pass early; never seen outside this module."""


class BlockWalk:
    """Hidden states of calibration windows, taken through the decoder blocks in order.

    For each name of :attr:`blocks` in turn: :meth:`load`, :meth:`second_moments`, then
    :meth:`advance`; :meth:`replace` changes weights at any moment in between.

    Args:
        checkpoint: Where the weights come from.
        windows: int64 [windows, window].

    Raises:
        NumericsError: The embedding gives NaN or Inf.
    """

    def __init__(
        self, checkpoint: Checkpoint, windows: Tensor, *, progress: Progress = silent
    ) -> None:
        self.checkpoint = checkpoint
        self.skeleton = checkpoint.skeleton()
        self.blocks = block_names(self.skeleton)
        self._progress = progress
        self._aliases = _aliases(self.skeleton)
        self._batches = torch.split(windows, max(1, TOKENS_AT_ONCE // windows.shape[1]))
        self._hidden: list[Tensor] = []
        self._calls: list[dict[str, _Call]] = []
        self._enter()

    def linears(self) -> list[str]:
        """The linear layers inside the blocks."""
        return [
            f"{block}.{name}"
            for block in self.blocks
            for name, module in self.skeleton.get_submodule(block).named_modules()
            if isinstance(module, nn.Linear)
        ]

    def load(self, block: str) -> None:
        """Read a block's weights into float32."""
        for name, _ in self.skeleton.get_submodule(block).named_parameters():
            self._read(f"{block}.{name}")

    def weight(self, layer: str) -> Tensor:
        """The weight of a loaded linear layer, float32 [N, K]."""
        weight: Tensor = self.skeleton.get_parameter(f"{layer}.weight").data
        return weight

    def replace(self, layer: str, weight: Tensor) -> None:
        """Let a loaded linear layer compute with another weight [N, K]."""
        self.replace_parameter(f"{layer}.weight", weight)

    def replace_parameter(self, name: str, tensor: Tensor) -> None:
        """Let the model compute with another tensor in place of a loaded parameter."""
        self._set(name, tensor)

    @torch.no_grad()
    def second_moments(
        self, block: str, layers: Sequence[str], *, advance: bool = False
    ) -> dict[str, Tensor]:
        """E[x xᵀ] of the inputs of some linear layers of the current block.

        Args:
            block: The block that the hidden states have reached; loaded.
            layers: Names of linear layers in it.
            advance: Take the hidden states through the block in the same pass.

        Returns:
            ``{layer: float32 [K, K]}``; layers fed by the same tensor share one object.

        Raises:
            NumericsError: Inputs or hidden states are not finite; all such layers are named.
            CheckpointError: A layer is never called.
        """
        collector = _Collector(layers, stop_early=not advance)
        handles = [
            self.skeleton.get_submodule(name).register_forward_pre_hook(collector.hook(name))
            for name in layers
        ]
        try:
            for index in range(len(self._batches)):
                self._report("calibrate", block, index)
                collector.begin()
                try:
                    output = self._run(block, index)
                except _ReachedError:
                    continue
                if advance:
                    self._hidden[index] = output
        finally:
            for handle in handles:
                handle.remove()
        if advance:
            self._check_finite(block)
        return collector.moments()

    @torch.no_grad()
    def advance(self, block: str) -> None:
        """Take the hidden states through the block and forget its weights.

        Raises:
            NumericsError: The block's output holds NaN or Inf.
        """
        for index in range(len(self._batches)):
            self._report("advance", block, index)
            self._hidden[index] = self._run(block, index)
        self._check_finite(block)
        self.release(block)

    def release(self, block: str) -> None:
        """Forget the weights of a block."""
        for name, parameter in list(self.skeleton.get_submodule(block).named_parameters()):
            self._set(f"{block}.{name}", torch.empty_like(parameter, device="meta"))

    def _report(self, stage: str, block: str, index: int) -> None:
        self._progress(stage, index, len(self._batches), {"block": block})

    def _run(self, block: str, index: int) -> Tensor:
        call = self._calls[index][block]
        output = self.skeleton.get_submodule(block)(self._hidden[index], *call.args, **call.kwargs)
        first: Tensor = output[0] if isinstance(output, tuple) else output
        return first

    def _check_finite(self, place: str) -> None:
        bad = sum(1 for hidden in self._hidden if not bool(torch.isfinite(hidden).all()))
        if bad:
            raise NumericsError(
                f"{place}: the hidden states of {bad} of {len(self._hidden)} batches hold NaN or "
                "Inf; the checkpoint does not survive float32 on this text."
            )

    @torch.no_grad()
    def _enter(self) -> None:
        """Run everything before and between the blocks, recording what each block is given."""
        outside = self._outside()
        for name in outside:
            self._read(name)
        first = self.blocks[0]
        self.load(first)
        self._calls.append({})
        self._hidden.append(torch.empty(0))
        originals = {name: self.skeleton.get_submodule(name).forward for name in self.blocks}
        try:
            self._stub(first, 0, leave=True)
            try:
                self._forward(self._batches[0])
            except _ReachedError:
                self.skeleton.get_submodule(first).forward = originals[first]
            call = self._calls[0][first]
            block = self.skeleton.get_submodule(first)
            tuples = isinstance(block(self._hidden[0], *call.args, **call.kwargs), tuple)
            for index, batch in enumerate(self._batches):
                self._report("embed", first, index)
                if index:
                    self._calls.append({})
                    self._hidden.append(torch.empty(0))
                for name in self.blocks:
                    self._stub(name, index, tuples=tuples)
                self._forward(batch)
        finally:
            for name, forward in originals.items():
                self.skeleton.get_submodule(name).forward = forward
        for name in outside:
            self._set(name, torch.empty_like(self.skeleton.get_parameter(name), device="meta"))
        self.release(first)
        self._check_finite("the embedding")

    def _forward(self, batch: Tensor) -> None:
        self.skeleton.base_model(input_ids=batch, use_cache=False)

    def _stub(self, name: str, index: int, *, tuples: bool = False, leave: bool = False) -> None:
        def record(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            self._calls[index][name] = _Call(args[1:], kwargs)
            if name == self.blocks[0]:
                self._hidden[index] = hidden
            if leave:
                raise _ReachedError
            return (hidden,) if tuples else hidden

        self.skeleton.get_submodule(name).forward = record

    def _outside(self) -> list[str]:
        """Parameters that belong to no block, but for an output embedding of its own."""
        head = self.skeleton.get_output_embeddings()
        own = {id(parameter) for parameter in head.parameters()} if head is not None else set()
        for name, parameter in self.skeleton.base_model.named_parameters():
            if not name.startswith(tuple(f"{block}." for block in self.blocks)):
                own.discard(id(parameter))
        return [
            name
            for name, parameter in self.skeleton.named_parameters()
            if id(parameter) not in own
            and not name.startswith(tuple(f"{block}." for block in self.blocks))
        ]

    def _read(self, name: str) -> None:
        naming = self.checkpoint.naming
        source = next((alias for alias in self._aliases[name] if alias in naming), name)
        self._set(name, self.checkpoint.parameter(source).to(torch.float32))

    def _set(self, name: str, tensor: Tensor) -> None:
        for alias in self._aliases[name]:
            owner, _, leaf = alias.rpartition(".")
            module = self.skeleton.get_submodule(owner)
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))


class _Collector:
    """Accumulates x xᵀ at the inputs of some linear layers."""

    def __init__(self, layers: Sequence[str], *, stop_early: bool) -> None:
        self._layers = list(layers)
        self._stop_early = stop_early
        self._leader: dict[str, str] = {}
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}
        # Inputs are compared by identity, so the batch's tensors have to stay alive.
        self._seen: dict[str, Tensor] = {}

    def begin(self) -> None:
        self._seen = {}

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def collect(module: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            shared = next((other for other, seen in self._seen.items() if seen is x), None)
            self._leader.setdefault(name, shared or name)
            self._seen[name] = x
            if self._leader[name] == name:
                rows = x.reshape(-1, x.shape[-1])
                if name not in self._sums:
                    self._sums[name] = torch.zeros(rows.shape[1], rows.shape[1])
                    self._tokens[name] = 0
                self._sums[name].addmm_(rows.t(), rows)
                self._tokens[name] += rows.shape[0]
            if self._stop_early and len(self._seen) == len(self._layers):
                raise _ReachedError

        return collect

    def moments(self) -> dict[str, Tensor]:
        unreached = [name for name in self._layers if name not in self._leader]
        if unreached:
            raise CheckpointError(
                "no calibration text reached " + ", ".join(unreached) + "; skip these layers."
            )
        broken = []
        for leader, total in self._sums.items():
            total /= self._tokens[leader]
            if not bool(torch.isfinite(total).all()):
                broken += [name for name in self._layers if self._leader[name] == leader]
        if broken:
            raise NumericsError("the inputs of these layers hold NaN or Inf: " + ", ".join(broken))
        return {name: self._sums[self._leader[name]] for name in self._layers}


def _aliases(skeleton: nn.Module) -> Mapping[str, list[str]]:
    """Every parameter name to all names of the same parameter."""
    grouped: dict[int, list[str]] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        grouped.setdefault(id(parameter), []).append(name)
    return {name: names for names in grouped.values() for name in names}


def hessians(
    checkpoint: Checkpoint,
    windows: Tensor,
    layers: Sequence[str] | None = None,
    *,
    weights: GetWeight | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[str, Tensor]]:
    """E[x xᵀ] of the inputs of linear layers, block by block.

    Args:
        checkpoint: The model.
        windows: int64 [windows, window].
        layers: Names of linear layers inside decoder blocks; every such layer where None.
        weights: What the forward computes with in place of these layers' own weights, e.g.
            ``BaseStream.weight`` for the quantised base.

    Yields:
        (layer, float32 [K, K]) in the order of the blocks; layers fed by the same tensor share
        one object.

    Raises:
        CheckpointError: A layer lies outside the blocks or is never called.
        NumericsError: Inputs or hidden states are not finite.
    """
    walk = BlockWalk(checkpoint, windows, progress=progress)
    by_block = layers_by_block(walk.blocks, walk.linears() if layers is None else layers)
    for done, block in enumerate(walk.blocks):
        progress("hessians", done, len(walk.blocks), {"block": block})
        walk.load(block)
        if weights is not None:
            for layer in by_block[block]:
                walk.replace(layer, weights(layer))
        yield from walk.second_moments(block, by_block[block], advance=True).items()
        walk.release(block)
    progress("hessians", len(walk.blocks), len(walk.blocks), {})


def layers_by_block(blocks: Sequence[str], layers: Sequence[str]) -> dict[str, list[str]]:
    """Sort layer names into decoder blocks.

    Raises:
        CheckpointError: A layer lies in no block.
    """
    sorted_in: dict[str, list[str]] = {block: [] for block in blocks}
    strangers = []
    for layer in layers:
        block = next((block for block in blocks if layer.startswith(f"{block}.")), None)
        if block is None:
            strangers.append(layer)
        else:
            sorted_in[block].append(layer)
    if strangers:
        raise CheckpointError("outside the decoder blocks: " + ", ".join(strangers) + ".")
    return sorted_in
