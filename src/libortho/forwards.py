"""The forward of a converted model: α is captured where it begins, and holds to its end.

Caches remember, row by row, under which streams and α they were filled, and refuse any other.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache, PreTrainedModel

from libortho import gate
from libortho.errors import AlphaError, UnsupportedLayer

_CACHES = (
    "past_key_values",
    "cache",
    "cache_params",
    "state",
    "mems",
    "past_buckets_states",
    "shared_kv_states",
)
"""What forwards of transformers are given of earlier ones."""

_STATELESS = ("attention_mask", "position_embeddings", "pixel_values", "pixel_values_videos")
"""Inputs that may be containers of tensors and come from no earlier forward."""

_KEPT = re.compile(r"_states?$")
"""What modules of transformers call the attributes that they keep a recurrent state in."""

_MOVERS = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")
"""The methods of a cache that move its rows."""


def watch(model: PreTrainedModel) -> None:
    """Let every forward of a model that has its ``ortho`` state begin and end at the gate.

    The decoder, called by itself without the language model's head, is a forward, too.

    Raises:
        UnsupportedLayer: modules keep a state of their own between forwards; all of them are named.
    """
    keeping = [
        name for name, module in model.named_modules() if any(map(_KEPT.search, vars(module)))
    ]
    if keeping:
        raise UnsupportedLayer(
            f"{type(model).__name__} keeps states in itself between forwards, where a forward of "
            f"another alpha would find them: {', '.join(keeping)}; the base serves without "
            "libortho, in stock transformers"
        )
    # Around the call, not by a pair of hooks: torch calls no hook after an interrupt.
    _replace(model, "_call_impl", _call)
    for part in {model.base_model, model.get_decoder()} - {model, None}:
        part.ortho = model.ortho
        _replace(part, "_call_impl", _call_inside)
    _replace(model, "generate", _generate)
    _replace(model, "_expand_inputs_for_generation", _expand)


def _replace(owner: Any, method: str, function: Any) -> None:
    """Put ``function(owner, …)`` in the place of a method; a copy of the owner calls the copy."""
    bound = functools.partial(function, owner)
    bound.__name__ = method  # type: ignore[attr-defined]  # by which Dynamo knows torch's own
    setattr(owner, method, bound)


# Dynamo cannot trace context variables. Outside its graphs these keep every rule of the gate; the
# model that is called is compiled all the same.
_uncompiled = torch.compiler.disable(
    reason="alpha enters here; for a graph without a break compile model.forward"
)
_enter, _leave = _uncompiled(gate.enter), _uncompiled(gate.leave)


@torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
def _call(model: Any, *args: Any, **kwargs: Any) -> Any:
    return _under(_begin(model, args, kwargs), model, args, kwargs)


def under(state: gate.Captured, model: Any, **inputs: Any) -> Any:
    """A forward under α that was captured before it: what a CUDA graph can record.

    Capturing α copies it from the host, which a recording forbids.

    Args:
        state: of :func:`libortho.gate.capture`, on the device of the model, one α per sequence.
        inputs: of the model's forward, with ``input_ids`` or ``inputs_embeds``.

    Raises:
        AlphaError: a cache was filled under another α.
    """
    _check(model, (), inputs, state)
    return _under(state, model, (), inputs)


@torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
def _under(state: gate.Captured, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    model.ortho.forwards += 1
    token = _enter(state)
    try:
        model.ortho.under_way.add(id(state))
        output = nn.Module._call_impl(model, *args, **kwargs)
    finally:
        model.ortho.under_way.discard(id(state))
        _leave(token)
    _remember(model, output, state)
    return output


def _call_inside(module: Any, *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling() or id(gate.current()) in module.ortho.under_way:
        return nn.Module._call_impl(module, *args, **kwargs)
    return _call(module, *args, **kwargs)


@_uncompiled  # type: ignore[untyped-decorator]
def _remember(model: Any, output: Any, state: gate.Captured) -> None:
    if isinstance(output, dict):
        model.ortho.returned.update(output)
    made = output.values() if isinstance(output, dict) else output
    for part in made if not isinstance(made, Tensor) else ():
        if isinstance(part, Cache):
            _tag(part, state.key)


@_uncompiled  # type: ignore[untyped-decorator]
def _begin(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> gate.Captured:
    inputs = args[0] if args else kwargs.get("input_ids")
    if inputs is None:
        inputs = kwargs["inputs_embeds"]
    state = gate.capture(model.ortho.attached, inputs.shape[0], inputs.device)
    _check(model, args, kwargs, state)
    return state


def _check(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], state: gate.Captured) -> None:
    """Refuse what may replay another α, and tag the caches that this forward fills."""
    given = {**dict(zip(_parameters(type(model).forward), args, strict=False)), **kwargs}
    strangers = [name for name, value in given.items() if _strange(model, name, value)]
    if strangers:
        told = ", ".join(f"{name} is a {type(given[name]).__name__}" for name in strangers)
        raise AlphaError(
            f"{told}, of which it is not known under which alpha it was filled; expected a "
            "transformers Cache"
        )
    for cache in (*args, *kwargs.values()):
        if isinstance(cache, Cache):
            _check_cache(cache, state)
            # Now, not after the forward: a forward that fails half-way has filled it, too.
            _tag(cache, state.key)
    if torch.is_grad_enabled():
        _carry_alpha(model)


def _strange(model: Any, name: str, value: Any) -> bool:
    """Whether an input of a forward may be a state that an earlier one left, and is no Cache."""
    if value is None or isinstance(value, Cache | bool | int | float | str):
        return False
    if name in _CACHES or name in model.ortho.returned:
        return True
    return not isinstance(value, Tensor) and name not in _STATELESS and _holds_state(value)


def _holds_state(value: Any) -> bool:
    """Whether floating-point tensors are in a container, or among an object's attributes."""
    if isinstance(value, Tensor):
        return value.is_floating_point()
    if isinstance(value, Mapping):
        return any(map(_holds_state, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_state, value))
    attributes = {} if callable(value) else getattr(value, "__dict__", {})
    return any(
        _holds_state(part)
        for part in attributes.values()
        if isinstance(part, Tensor | Mapping | list | tuple)
    )


@functools.cache
def _parameters(forward: Hashable) -> tuple[str, ...]:
    """Names of the inputs of a class's forward, in order."""
    assert callable(forward)
    return tuple(inspect.signature(forward).parameters)[1:]


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    with gate.copied(1):
        return type(model).generate(model, *args, **kwargs)


def _expand(model: Any, expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
    gate.copy_rows(expand_size)
    return type(model)._expand_inputs_for_generation(model, expand_size, *args, **kwargs)


def _carry_alpha(model: nn.Module) -> None:
    for module in model.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if function is not None and not getattr(function, "carries_alpha", False):
            module._gradient_checkpointing_func = gate.carried(function)  # type: ignore[assignment]


def _tag(cache: Any, key: tuple[Any, ...]) -> None:
    """Let a cache remember what every row of it was filled under, wherever the row moves."""
    cache.libortho_gate = key
    for method in _MOVERS:
        if method not in vars(cache):
            _replace(cache, method, functools.partial(_move, method))


def _move(method: str, cache: Any, rows: Any) -> None:
    """Move a cache's rows by one of ``_MOVERS``, and what is remembered of each with them."""
    key, cache.libortho_gate = cache.libortho_gate, ()  # should it fail half-way
    getattr(type(cache), method)(cache, rows)
    places = torch.arange(len(key))
    places = (
        places.repeat_interleave(rows)
        if method == "batch_repeat_interleave"
        else places[torch.as_tensor(rows).cpu()]
    )
    cache.libortho_gate = tuple(key[place] for place in places.tolist())


def _check_cache(cache: Any, state: gate.Captured) -> None:
    """Refuse a cache that was filled under other streams or another α than its rows have now."""
    # Whether it is filled may take a look at the device: not where the answer does not matter.
    if getattr(cache, "libortho_gate", None) != state.key and _filled(cache):
        raise AlphaError(
            "this key-value cache was filled under another alpha or other streams "
            "and would replay them; begin with an empty cache"
        )


def _filled(cache: Any) -> bool:
    """Whether any layer holds keys and values, or a recurrent state."""
    if isinstance(cache, EncoderDecoderCache):
        return _filled(cache.self_attention_cache) or _filled(cache.cross_attention_cache)
    for layer in cache.layers:
        length = getattr(layer, "get_seq_length", None)
        recurrent = getattr(layer, "has_previous_state", {})
        if any(recurrent.values()) or (length is not None and int(length())):
            return True
    return False
