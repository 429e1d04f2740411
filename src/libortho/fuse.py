"""Projections that read the same input, made one linear: fewer and larger kernels to decode with.

The names stay, as a :class:`FusedPart` each. The first that is called computes all of them, the
others take their columns. What was computed is kept only while the module that holds them runs,
and is handed out only for the same input, unchanged, in the same thread, under the same captured α.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from libortho import gate
from libortho.errors import ConfigError
from libortho.layout import TILE_ROWS, stack_base
from libortho.linear import BaseWeight, CsrStream, OrthoLinear
from libortho.streams.layers import CsrLayer

GROUPS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Names of the fused linear, and of those that it stands for, in the order of its rows."""

_log = logging.getLogger(__name__)

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_hf_hook",
)
"""What would no longer be called, or moves a module's tensors."""


def fuse_projections(model: nn.Module) -> None:
    """Make siblings of ``GROUPS`` one linear each, in place: for serving.

    Converted linears with their CSR streams, and ``nn.Linear``, biases and all. The fused linear
    owns the weights, under the name of its group beside the old ones, in
    :func:`libortho.model.linears` and in the state dict; the old names hold no tensors. Streams
    can be detached afterwards; none can be attached, and no adapter laid over a part.

    A model in floating point is to be saved before: its parts have no weights of their own to load.
    Code that learns must not write over y of one part: the others share its storage.

    y of a part is a view, and may differ from that of the separate linear in the last bits where
    the kernel's order of sums depends on N: on a GPU, and in batches that a CPU sends to torch's
    matmul. α = 0 is the fused base without streams bit for bit.

    A group stays apart, and a warning says why, where kinds, shapes or dtypes differ, a converted
    part is not whole tiles of ``TILE_ROWS`` rows, a stream of it is ``lowrank`` or ``dense`` or is
    being trained, or hooks would be lost (a stream that changes a bias is one).

    Where the parts read different inputs (cross-attention) each computes the whole. Compiled code
    and inference mode do not see that x was changed in place between two parts of a group, nor
    compiled code, at a graph break there, that α was: models of transformers do neither.

    Raises:
        ConfigError: no group of the model can be fused, or all are already.
    """
    found, apart = 0, dict[str, str]()
    for path, parent in list(model.named_modules()):
        whole = []
        for name, leaves in GROUPS.items():
            parts = [parent._modules.get(leaf) for leaf in leaves]
            if not all(isinstance(part, nn.Linear | OrthoLinear) for part in parts):
                continue
            why = _apart(parent, name, dict(zip(leaves, parts, strict=True)))
            if why:
                apart[f"{path}.{name}" if path else name] = why
                continue
            whole.append(_fuse(parent, name, leaves, parts))
        if whole:
            parent.forward = partial(_forward, parent, tuple(whole))
        found += len(whole)
    told = "; ".join(f"{name}: {why}" for name, why in apart.items())
    if not found and is_fused(model):
        raise ConfigError(f"the projections of this {type(model).__name__} are fused already")
    if not found:
        raise ConfigError(
            f"nothing to fuse in {type(model).__name__}: "
            + (told or f"no module holds {' or '.join(map(', '.join, GROUPS.values()))}")
            + "; load it without fuse=True"
        )
    if apart:
        _log.warning("not fused: %s", told)


def is_fused(model: nn.Module) -> bool:
    """Whether any projections of the model are fused."""
    return any(isinstance(module, FusedPart) for module in model.modules())


class FusedPart(nn.Module):
    """One projection of a fused linear, under its old name.

    Attributes:
        in_features: K.
        out_features: N of this part alone.
    """

    def __init__(self, shared: _Shared, first: int, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features = shared.linear.in_features, rows
        self._shared, self._first = shared, first

    @property
    def weight(self) -> Tensor:
        """[N, K] of this part: for a converted linear the base alone, dequantised to fp32."""
        weight: Tensor = self._shared.linear.weight
        return weight.narrow(0, self._first, self.out_features)

    @property
    def bias(self) -> Tensor | None:
        """[N] of this part, or None."""
        bias = self._shared.linear.bias
        return None if bias is None else bias.narrow(0, self._first, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] → [..., N], a view of what all parts share."""
        return self._shared.product(x, self._first).narrow(-1, self._first, self.out_features)

    def extra_repr(self) -> str:
        last = self._first + self.out_features - 1
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rows {self._first} … {last} of {self._shared.name}"
        )


class FusedLinear(OrthoLinear):
    """A fused converted linear: no layer of the base on disk has its name."""


class _Kept(NamedTuple):
    """A product of all parts, what it was made of, and the parts that have theirs."""

    x: Tensor | None
    state: gate.Captured | None
    stamp: tuple[int, int | None, bool] | None
    y: Tensor | None
    taken: tuple[int, ...]


_NOTHING = _Kept(None, None, None, None, ())


class _Shared:
    """A fused linear, which is no child of its parts, and the product that they take turns at.

    Attributes:
        kept: one tuple, read and written whole; None outside the module that holds the parts.
    """

    def __init__(self, parent: nn.Module, name: str, parts: int) -> None:
        self.parent, self.name, self.parts = parent, name, parts
        self.kept: _Kept | None = None

    @property
    def linear(self) -> Any:
        """What the parent holds now: an adapter or another quantiser may have replaced it."""
        return getattr(self.parent, self.name)

    def product(self, x: Tensor, part: int) -> Tensor:
        kept = self.kept
        if kept is None:
            return self._computed(x)
        state, stamp = None, None
        if not torch.compiler.is_compiling():
            version = None if x.is_inference() else x._version
            state, stamp = gate.current(), (get_ident(), version, torch.is_grad_enabled())
            if state is None and not isinstance(self.linear, nn.Linear):
                # Outside a forward of the model every call asks anew what α is.
                return self._computed(x)
        same = kept.x is x and kept.state is state and kept.stamp == stamp
        if same and kept.y is not None and part not in kept.taken:
            y, taken = kept.y, (*kept.taken, part)
        else:
            y, taken = self._computed(x), (part,)
        self.kept = _Kept(x, state, stamp, y, taken) if len(taken) < self.parts else _NOTHING
        return y

    def _computed(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


def _forward(parent: Any, whole: tuple[_Shared, ...], *args: Any, **kwargs: Any) -> Any:
    """The forward of a module that holds fused parts: nothing kept outlives it."""
    for shared in whole:
        shared.kept = _NOTHING
    try:
        return type(parent).forward(parent, *args, **kwargs)
    finally:
        for shared in whole:
            shared.kept = None


def _apart(parent: nn.Module, name: str, parts: dict[str, Any]) -> str:
    """Why a group stays apart, in words; empty if it need not."""
    if name in dir(parent):
        return f"{type(parent).__name__} has something of that name"
    if "forward" in vars(parent):
        return f"the forward of its {type(parent).__name__} has been replaced"
    found = []
    for word, of in _ALIKE.items():
        values = {leaf: of(part) for leaf, part in parts.items()}
        if len(set(values.values())) > 1:
            found.append(f"{word} differ: {values}")
    for leaf, part in parts.items():
        hooks = [hook for hook in _HOOKS if vars(part).get(hook)]
        if hooks:
            found.append(f"{leaf} has hooks ({', '.join(hooks)})")
        if type(part) not in (nn.Linear, OrthoLinear):
            found.append(f"{leaf} is a {type(part).__name__}")
        if isinstance(part, OrthoLinear):
            found += [f"{leaf}: {problem}" for problem in _unfit(part)]
    return ", ".join(found)


_ALIKE: dict[str, Callable[[Any], object]] = {
    "kinds": lambda part: type(part).__name__,
    "K": lambda part: part.in_features,
    "biases": lambda part: None if part.bias is None else part.bias.dtype,
    "gradients": lambda part: any(one.requires_grad for one in part.parameters(recurse=False)),
    "weights": lambda part: (
        (part.base.group_size, part.base.scales.dtype, part.base.tiles.device)
        if isinstance(part, OrthoLinear)
        else (part.weight.dtype, part.weight.device)
    ),
}


def _unfit(part: OrthoLinear) -> list[str]:
    found = []
    if part.out_features % TILE_ROWS:
        found.append(f"N = {part.out_features} is not whole tiles of {TILE_ROWS} rows")
    for name, stream in part.streams.items():
        if not isinstance(stream, CsrStream):
            found.append(f"stream {name!r} is a {type(stream).__name__}, not CSR")
        elif any(one.requires_grad for one in stream.parameters()):
            found.append(f"stream {name!r} is being trained")
    return found


def _fuse(parent: nn.Module, name: str, leaves: Sequence[str], parts: Sequence[Any]) -> _Shared:
    converted = isinstance(parts[0], OrthoLinear)
    linear = _stacked(parts) if converted else _concatenated(parts)
    parent.add_module(name, linear.train(parent.training))
    shared = _Shared(parent, name, len(parts))
    first = 0
    for leaf, part in zip(leaves, parts, strict=True):
        setattr(parent, leaf, FusedPart(shared, first, part.out_features).train(parent.training))
        first += part.out_features
    return shared


def _concatenated(parts: Sequence[nn.Linear]) -> nn.Linear:
    weight = torch.cat([part.weight.detach() for part in parts])
    learns = parts[0].weight.requires_grad
    bias = _bias(parts)
    whole = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    whole.weight = nn.Parameter(weight, learns)
    if bias is not None:
        whole.bias = nn.Parameter(bias, learns)
    return whole


def _stacked(parts: Sequence[OrthoLinear]) -> FusedLinear:
    base = BaseWeight(stack_base([part.base.tiled() for part in parts]))
    whole = FusedLinear(base, _bias(parts), parts[0]._attached)
    for name in dict.fromkeys(name for part in parts for name in part.streams):
        whole.streams[name] = CsrStream(_rows(parts, name))
    return whole


def _bias(parts: Sequence[Any]) -> Tensor | None:
    if parts[0].bias is None:
        return None
    return torch.cat([part.bias.detach() for part in parts])


def _rows(parts: Sequence[OrthoLinear], name: str) -> CsrLayer:
    """A stream of several linears as one matrix; a linear without it has empty rows."""
    device = parts[0].base.tiles.device
    starts = [torch.zeros(1, dtype=torch.int32, device=device)]
    indices, values = [], []
    for part in parts:
        before = starts[-1][-1]
        if name not in part.streams:
            starts.append(before.expand(part.out_features))
            continue
        stream = part.streams[name]
        assert isinstance(stream, CsrStream)
        starts.append(stream.indptr[1:] + before)
        indices.append(stream.indices)
        values.append(stream.csr_values())
    shape = sum(part.out_features for part in parts), parts[0].in_features
    return CsrLayer(torch.cat(starts), torch.cat(indices), torch.cat(values), shape)
