"""The forward of a converted model: α is captured where it begins, and holds to its end.

Key-value caches remember under which streams and α they were filled, and refuse any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from libortho import gate
from libortho.errors import AlphaError

_CACHES = ("past_key_values", "cache", "cache_params")


def watch(model: PreTrainedModel) -> None:
    """Let every forward of a model that has its ``ortho`` state begin and end at the gate.

    The decoder, called by itself without the language model's head, is a forward, too.
    """
    model.register_forward_pre_hook(_capture, with_kwargs=True)
    model.register_forward_hook(_release, always_call=True)
    for part in {model.base_model, model.get_decoder()} - {model, None}:
        part.ortho = model.ortho
        part.register_forward_pre_hook(_capture_inside, with_kwargs=True)
        part.register_forward_hook(_release_inside, always_call=True)


# Dynamo cannot trace context variables. Outside its graphs the hooks keep every rule of the gate.
_uncompiled = torch.compiler.disable(
    reason="alpha enters here; for a graph without a break compile model.forward"
)


@_uncompiled  # type: ignore[untyped-decorator]
def _capture(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        state = _begin(model, args, kwargs)
    except BaseException:
        # _release is called all the same, and must not end the forward that this one runs inside.
        gate.enter(gate.Captured((), torch.zeros(0, 1), ((),), gate.current()))
        raise
    model.ortho.forwards += 1
    model.ortho.under_way.add(id(state))
    gate.enter(state)


def _begin(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> gate.Captured:
    inputs = args[0] if args else kwargs.get("input_ids")
    if inputs is None:
        inputs = kwargs["inputs_embeds"]
    state = gate.capture(model.ortho.attached, inputs.shape[0], inputs.device)
    strangers = [name for name in _CACHES if not isinstance(kwargs.get(name), Cache | None)]
    if strangers:
        raise AlphaError(
            f"{strangers[0]} is a {type(kwargs[strangers[0]]).__name__}, of which it is not known "
            "under which alpha it was filled; expected a transformers Cache"
        )
    for cache in (*args, *kwargs.values()):
        if isinstance(cache, Cache):
            _check_cache(cache, state)
            # Now, not after the forward: a forward that fails half-way has filled it, too.
            cache.libortho_gate = state.key
    if torch.is_grad_enabled():
        _carry_alpha(model)
    return state


@_uncompiled  # type: ignore[untyped-decorator]
def _release(model: Any, args: tuple[Any, ...], output: Any) -> None:
    state = gate.leave()
    model.ortho.under_way.discard(id(state))
    cache = getattr(output, "past_key_values", None)
    if cache is not None and state is not None:
        cache.libortho_gate = state.key


def _capture_inside(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling() or id(gate.current()) in module.ortho.under_way:
        return
    try:
        _capture(module, args, kwargs)
    finally:
        module.ortho.from_inside.add(id(gate.current()))


def _release_inside(module: Any, args: tuple[Any, ...], output: Any) -> None:
    if torch.compiler.is_compiling() or id(gate.current()) not in module.ortho.from_inside:
        return
    module.ortho.from_inside.discard(id(gate.current()))
    _release(module, args, output)


def _carry_alpha(model: nn.Module) -> None:
    for module in model.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if function is not None and not getattr(function, "carries_alpha", False):
            module._gradient_checkpointing_func = gate.carried(function)  # type: ignore[assignment]


def _check_cache(cache: Any, state: gate.Captured) -> None:
    """Refuse a key-value cache that was filled under other streams or another α.

    A cache that was repeated row by row, as for beams or candidates, keeps its rows' α.
    """
    if not int(cache.get_seq_length()):
        return
    filled = getattr(cache, "libortho_gate", None)
    times = len(state.key) // len(filled) if filled else 0
    if not filled or tuple(row for row in filled for _ in range(times)) != state.key:
        raise AlphaError(
            "this key-value cache was filled under another alpha or other streams "
            "and would replay them; begin with an empty cache"
        )
