"""The gate: which streams act, per sequence.

α is a finite number in [0, 1], rounded once, where it enters, to a multiple of 1/256. It is 0 for
every stream that nobody opened. :func:`alpha` sets it for the current context; the model captures
it when its forward begins (:func:`captured`), one value per stream and sequence, and its linears
expand that to tokens (:func:`rows`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from libortho.errors import AlphaError

if TYPE_CHECKING:
    from libortho.streams.ortho import OrthoStream

STEPS = 256
"""α is a multiple of 1 / STEPS."""

REPAIR = "repair"
"""The standard public stream, which a plain number opens too."""

Setting = float | Mapping[str, float]
"""α of one sequence: a number, or a value per stream name."""


@dataclass(frozen=True)
class StreamInfo:
    """What the gate needs to know of an attached stream."""

    name: str
    id: str
    public: bool
    requires: tuple[str, ...] = ()

    @classmethod
    def of(cls, stream: OrthoStream) -> StreamInfo:
        """Of a stream on disk."""
        manifest = stream.manifest
        return cls(stream.name, stream.id, manifest.public, tuple(manifest.requires))


@dataclass(frozen=True)
class Captured:
    """α as one forward of a model sees it.

    Attributes:
        names: the attached streams.
        alpha: fp32 [streams, sequences], rows in the order of ``names``.
        key: per sequence, the (id, α) of every open stream: what a cache must be keyed by.
    """

    names: tuple[str, ...]
    alpha: Tensor
    key: tuple[tuple[tuple[str, float], ...], ...]
    # What linears have been given: those of one forward mostly ask for the same.
    given: dict[tuple[object, ...], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sequences(self) -> int:
        """Sequences of the forward's batch."""
        return self.alpha.shape[1]


Spec = Setting | tuple[Setting, ...]

_ambient: ContextVar[Spec] = ContextVar("libortho_alpha", default=0.0)
_captured: ContextVar[Captured | None] = ContextVar("libortho_captured", default=None)
_copies: ContextVar[int] = ContextVar("libortho_copies", default=1)


@contextmanager
def alpha(spec: Setting | Sequence[Setting] | Tensor) -> Iterator[None]:
    """Open streams for every model call inside the ``with`` block.

    Args:
        spec: a number (sets ``repair`` and the one attached stream that is not public), a mapping
            from stream name to number, or a sequence of those, one per row of the batch.

    Raises:
        AlphaError: a value is not a finite number in [0, 1]; names are checked at the forward.
    """
    token = _ambient.set(canonical(spec))
    try:
        yield
    finally:
        _ambient.reset(token)


def canonical(spec: Setting | Sequence[Setting] | Tensor) -> Spec:
    """Check a setting and round every value to a multiple of 1/256 (ties to even)."""
    if isinstance(spec, Tensor):
        spec = spec.tolist()
    if isinstance(spec, Sequence) and not isinstance(spec, (str, bytes)):
        return tuple(_setting(entry) for entry in spec)
    return _setting(spec)


def parse(text: str) -> Setting:
    """Read ``1`` or ``private=1,repair=0.5``: the form of the command line and of HTTP fields.

    Raises:
        AlphaError: the text has neither form, or names a stream twice.
    """
    if "=" not in text:
        return _setting(_number(text))
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() in values:
            raise AlphaError(f"alpha {text!r}: stream {name.strip()!r} is named twice")
        values[name.strip()] = _number(value)
    return _setting(values)


@contextmanager
def copied(times: int) -> Iterator[None]:
    """Let α given row by row stand for ``times`` copies of every row, beside each other.

    Inside the block :func:`copy_rows` changes how many.
    """
    token = _copies.set(times)
    try:
        yield
    finally:
        _copies.reset(token)


def copy_rows(times: int) -> None:
    """From here on, in the block of :func:`copied`, every row is there ``times`` times (beams)."""
    _copies.set(times)


def resolve(spec: Spec, streams: Sequence[StreamInfo], sequences: int) -> Tensor:
    """α as fp32 [streams, sequences].

    Rows given one by one are one per sequence; where generation copies sequences (beams), every
    copy has the α of its row.

    Raises:
        AlphaError: a name is not attached, a number is ambiguous, the count of rows does not fit,
            or a stream is opened without a public stream that it requires.
    """
    rows = spec if isinstance(spec, tuple) else (spec,) * sequences
    if sequences not in (len(rows), len(rows) * _copies.get()):
        copies = f" ({_copies.get()} copies of each row)" if _copies.get() > 1 else ""
        raise AlphaError(
            f"alpha has {len(rows)} rows, the batch {sequences} sequences{copies}; "
            "give one value, or one per sequence"
        )
    columns = [_by_stream(row, streams) for row in rows]
    table = torch.tensor(columns, dtype=torch.float32).reshape(len(rows), len(streams)).t()
    return table.repeat_interleave(sequences // max(len(rows), 1), dim=1).contiguous()


def capture(streams: Sequence[StreamInfo], sequences: int, device: torch.device) -> Captured:
    """The state for a forward that begins now, from the ambient setting."""
    table = resolve(_ambient.get(), streams, sequences)
    key = tuple(
        tuple((stream.id, value) for stream, value in zip(streams, column, strict=True) if value)
        for column in table.t().tolist()
    )
    names = tuple(stream.name for stream in streams)
    return Captured(names, table.to(device), key)


@contextmanager
def captured(state: Captured | None) -> Iterator[None]:
    """Make ``state`` what the linears inside the block see."""
    token = enter(state)
    try:
        yield
    finally:
        leave(token)


def enter(state: Captured | None) -> Token[Captured | None]:
    """Make ``state`` what linears see from here to :func:`leave`, which takes what this returns."""
    return _captured.set(state)


def leave(token: Token[Captured | None]) -> None:
    """End what :func:`enter` began."""
    _captured.reset(token)


def current() -> Captured | None:
    """The state of the innermost forward under way in this context."""
    return _captured.get()


def carried(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a checkpointing function so that a block is recomputed under the α of its forward.

    The recomputation runs inside the backward pass, on whatever thread autograd uses, where the
    context of the forward is gone.
    """

    def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state = _captured.get()

        def block(*inputs: Any, **options: Any) -> Any:
            with captured(state):
                return function(*inputs, **options)

        return checkpoint(block, *args, **kwargs)

    run.carries_alpha = True  # type: ignore[attr-defined]
    return run


def rows(
    names: Sequence[str],
    attached: Sequence[StreamInfo],
    x: Tensor,
) -> Tensor:
    """α of the streams of one linear, expanded to the rows of an input.

    Args:
        names: the streams that the linear holds, in its own order.
        attached: every stream attached to the model.
        x: the linear's input, [..., K]; sequences lead. Shape and device are all that is used.

    Returns:
        fp32 [streams, M] with M the product of all dimensions but the last; not to be written to.

    Raises:
        AlphaError: the rows are no multiple of the sequences, or are shared by sequences of another
            α, or a block is being recomputed in a backward pass without the α of its forward.
    """
    count = math.prod(x.shape[:-1])
    if not names or count == 0:
        return torch.zeros(len(names), count, device=x.device)
    if torch.compiler.is_compiling():
        found: Tensor = torch.ops.libortho.alpha_rows(x.detach(), ",".join(names))
        return found
    state = _captured.get()
    if state is None:
        if torch._C._current_graph_task_id() != -1:
            raise AlphaError(
                "a block is recomputed in the backward pass outside the model's "
                "forward, where its alpha is unknown; enable checkpointing with "
                "model.gradient_checkpointing_enable()"
            )
        sequences = x.shape[0] if x.dim() > 2 else count
        state = capture(attached, sequences, x.device)
    return _shared(state, names, x)


def compiled_rows(names: Sequence[str], x: Tensor) -> Tensor:
    """As :func:`rows`, for an op that compiled code runs; never to be returned by one.

    Raises:
        AlphaError: outside a forward of the model, too.
    """
    state = _captured.get()
    if state is None:
        raise AlphaError(
            "compiled converted linears ran outside their model's forward, where alpha is unknown; "
            "compile the model, or its forward"
        )
    return _shared(state, names, x)


def _shared(state: Captured, names: Sequence[str], x: Tensor) -> Tensor:
    asked = (*names, x.shape[:-1], x.device)
    if asked not in state.given:
        state.given[asked] = _expanded(state, names, x)
    return state.given[asked]


def _expanded(state: Captured, names: Sequence[str], x: Tensor) -> Tensor:
    count = math.prod(x.shape[:-1])
    known = [name for name in names if name in state.names]
    table = state.alpha[[state.names.index(name) for name in known]]
    if len(known) < len(names):
        # Attached since the forward began: closed in it, since alpha holds to the end.
        whole = table.new_zeros(len(names), table.shape[1])
        whole[[place for place, name in enumerate(names) if name in state.names]] = table
        table = whole
    sequences = table.shape[1]
    if (x.shape[0] if x.dim() > 2 else count) % sequences:
        # One for all of them, as the positions that a batch shares: it has no alpha of its own.
        if not torch.equal(table, table[:, :1].expand_as(table)):
            raise AlphaError(
                f"an input of shape {list(x.shape)} cannot be shared by {sequences} sequences of "
                "different alpha; give all rows of the batch one alpha, or run them one by one"
            )
        table, sequences = table[:, :1], 1
    return table.repeat_interleave(count // sequences, dim=1).to(x.device)


# Compiled code asks for alpha by an op, which is run anew at every call: neither a graph nor a
# recording of its kernels may keep the alpha that it was made under. x keeps it from being taken
# for a constant.
@torch.library.custom_op(
    "libortho::alpha_rows", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _alpha_rows(x: Tensor, names: str) -> Tensor:
    return compiled_rows(names.split(","), x).clone()


@_alpha_rows.register_fake
def _(x: Tensor, names: str) -> Tensor:
    return x.new_empty((names.count(",") + 1, math.prod(x.shape[:-1])), dtype=torch.float32)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise AlphaError(f"alpha {text!r}: expected a number in [0, 1] or name=number") from None


def _setting(value: Any) -> Setting:
    if isinstance(value, Mapping):
        return {str(name): _round(entry, f"alpha of {name!r}") for name, entry in value.items()}
    return _round(value, "alpha")


def _round(value: Any, what: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise AlphaError(f"{what}: expected a finite number in [0, 1], found {value!r}")
    return float(round(value * STEPS) / STEPS)


def _by_stream(row: Setting, streams: Sequence[StreamInfo]) -> list[float]:
    if isinstance(row, Mapping):
        strangers = sorted(set(row) - {stream.name for stream in streams})
        if strangers:
            attached = ", ".join(stream.name for stream in streams) or "none"
            raise AlphaError(
                f"alpha names streams that are not attached: {', '.join(strangers)}; "
                f"attached: {attached}"
            )
        values = {stream.name: float(row.get(stream.name, 0.0)) for stream in streams}
    else:
        values = _spread(float(row), streams)
    opened = {stream.id for stream in streams if values[stream.name] > 0}
    for stream in streams:
        lacking = [need for need in stream.requires if need not in opened]
        if values[stream.name] > 0 and lacking:
            known = {other.id: other.name for other in streams}
            names = ", ".join(
                f"{known.get(need, 'not attached')} ({need[:12]}…)" for need in lacking
            )
            raise AlphaError(
                f"stream {stream.name!r} was made with public streams open that are "
                f"closed here: {names}; open them too"
            )
    return [values[stream.name] for stream in streams]


def _spread(value: float, streams: Sequence[StreamInfo]) -> dict[str, float]:
    private = [stream.name for stream in streams if not stream.public]
    if value and len(private) > 1:
        raise AlphaError(
            f"alpha {value:g} is ambiguous with several streams attached: "
            f"{', '.join(private)}; name them, such as {{{private[0]!r}: {value:g}}}"
        )
    if value and not streams:
        raise AlphaError(f"alpha {value:g}: no stream is attached; load one with streams=[…]")
    return {stream.name: value if stream.name in (REPAIR, *private) else 0.0 for stream in streams}
