"""Whole-model decoding on a GPU: every step is compiled, recorded as a CUDA graph and replayed.

Python and the launches then take no time in any state, floating point among them, and what lies
between the linears is fused alike: kernels are compared with kernels. The static cache keeps its
length on the device, so a replay writes the next place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from libortho import gate
from libortho.bench.timing import record, replayed
from libortho.experiments.decode import (
    PROMPT,
    REGION,
    WARM_UP,
    Alpha,
    Decoded,
    Models,
    prefilled,
    prompt,
    states_of,
)
from libortho.forwards import under
from libortho.model import Ortho, call_region
from libortho.progress import Progress, silent

Compiler = str | Callable[..., Any]
"""A backend of ``torch.compile``."""


def decode_recorded(
    models: Models,
    batch: int,
    steps: int,
    device: torch.device,
    progress: Progress = silent,
    compiler: Compiler = "inductor",
) -> dict[str, Decoded]:
    """Decodes ``steps`` tokens a sequence, the states in turn, each step one replay.

    A replay runs the kernels of the forward that was recorded: the calls that entered the native
    function while it was recorded, and those expected of it, count once a replay.

    Args:
        compiler: of the steps.

    Returns:
        As :func:`libortho.experiments.decode.decode`.
    """
    states = states_of(models, batch)
    tokens = prompt(batch).to(device)
    found: dict[str, Decoded] = {}
    replays: dict[str, Callable[[], None]] = {}
    length = PROMPT + 2 * WARM_UP + 1 + steps
    caches = {name: prefilled(*state, tokens, length) for name, state in states.items()}
    with compiled([models.floating, models.base, models.streamed], compiler):
        for done, (name, (model, setting)) in enumerate(states.items(), 1):
            found[name], replays[name] = recorded(
                model, setting, tokens[:, :1], caches[name], device
            )
            progress(f"compile and record at batch {batch}", done, len(states), {})
    for turn in range(-WARM_UP, steps):
        for name, replay in replays.items():
            seconds = replayed(replay, device)
            if turn >= 0:
                found[name].seconds.append(seconds)
        progress(f"decode at batch {batch}", max(turn + 1, 0), steps, {})
    for one in found.values():
        one.native_op_calls *= steps
        one.expected_op_calls *= steps
        one.dense_route_calls *= steps
    return found


@contextmanager
def compiled(models: Sequence[Any], compiler: Compiler) -> Iterator[None]:
    """Compiles the forwards of models inside the block, each as one graph without a break."""
    torch.compiler.reset()  # one shape of the inputs at a time
    own = [vars(model).get("forward") for model in models]
    try:
        for model in models:
            model.forward = torch.compile(
                model.forward, fullgraph=True, dynamic=False, backend=compiler
            )
        yield
    finally:
        for model, forward in zip(models, own, strict=True):
            vars(model).pop("forward", None)
            if forward is not None:
                model.forward = forward


def recorded(
    model: Any, setting: Alpha, tokens: Tensor, cache: StaticCache, device: torch.device
) -> tuple[Decoded, Callable[[], None]]:
    """One step of one state: the calls of a single forward, and its replay."""
    step = stepper(model, setting, tokens, cache)
    numbers = itertools.count()
    with torch.no_grad():
        for _ in range(WARM_UP):
            step(next(numbers))
    if not isinstance(getattr(model, "ortho", None), Ortho):
        with torch.no_grad():
            return Decoded(), record(step, numbers, 1, warm_up=0)
    with call_region(model, REGION) as calls:
        replay = record(step, numbers, 1, warm_up=0)
    return Decoded(
        [], calls.native_op_calls, calls.expected_op_calls, calls.dense_route_calls
    ), replay


def stepper(
    model: Any, setting: Alpha, tokens: Tensor, cache: StaticCache
) -> Callable[[int], object]:
    """A step that reads nothing from the host: α is captured here."""
    inputs = {"input_ids": tokens, "past_key_values": cache, "use_cache": True}
    if not isinstance(getattr(model, "ortho", None), Ortho):
        return lambda _: model(**inputs)
    with gate.alpha(0.0 if setting is None else setting):
        state = gate.capture(model.ortho.attached, tokens.shape[0], tokens.device)
    forward = partial(under, state, model, **inputs)
    return lambda _: forward()
