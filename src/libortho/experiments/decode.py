"""Whole-model decoding of random weights: latency does not depend on what a model has learned.

One floating-point model and two converted ones that share the INT4 base, without and with a stream.
Projections that read one input are one linear in all three. Weights repeat one random block, and
streams of one shape are alike, each in memory of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, StaticCache

from libortho import gate
from libortho.fuse import fuse_projections
from libortho.layout import tile_base
from libortho.linear import BaseWeight, OrthoLinear
from libortho.model import Ortho, adopt, call_region, linears
from libortho.progress import Progress, silent
from libortho.streams.layers import CsrLayer

GROUP_SIZE = 128
BLOCK = 1 << 20
PROMPT = 16
WARM_UP = 2
STREAM = "random"
REGION = "decode"
DTYPE = torch.bfloat16
TOKENS = 100  # of the vocabulary
Alpha = gate.Setting | Sequence[gate.Setting] | None

ONE_BILLION = LlamaConfig(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=128256,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
)
"""The shape of Llama-3.2-1B."""

EIGHT_BILLION = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
)
"""The shape of Llama-3-8B."""

CPU = torch.device("cpu")


@dataclass
class Models:
    """The same shape in floating point, on the INT4 base, and on the base with a stream."""

    floating: Any
    base: Any
    streamed: Any


@dataclass
class Decoded:
    """One state at one batch size.

    Attributes:
        seconds: of every timed forward, one token a sequence.
    """

    seconds: list[float] = field(default_factory=list)
    native_op_calls: int = 0
    expected_op_calls: int = 0
    dense_route_calls: int = 0


def random_models(
    config: LlamaConfig,
    density: float,
    seed: int,
    progress: Progress = silent,
    device: torch.device = CPU,
) -> Models:
    """Builds the three models in the device's memory, bf16 activations.

    Args:
        density: nnz / numel of the stream in every converted linear.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(BLOCK, generator=generator) * 0.02).to(DTYPE)
    codes = torch.randint(-8, 8, (BLOCK,), generator=generator, dtype=torch.int8).to(device)
    noise = drawn.to(device)
    floating = _empty(config, device)
    for tensor in floating.parameters():
        tensor.data.copy_(_filled(noise, tensor.shape))
    state = Ortho(None, [gate.StreamInfo(STREAM, STREAM, public=False)])
    base, streamed = _skeleton(config, floating), _skeleton(config, floating)
    names = [
        name
        for name, module in floating.named_modules()
        if isinstance(module, nn.Linear) and module is not floating.get_output_embeddings()
    ]
    parts: dict[tuple[int, int], CsrLayer] = {}
    for done, name in enumerate(names, 1):
        rows, columns = floating.get_submodule(name).weight.shape
        shape = (int(rows), int(columns))
        scales = codes.new_full((shape[0], shape[1] // GROUP_SIZE), 0.004, dtype=torch.float16)
        weight = BaseWeight(tile_base(_filled(codes, shape), scales, GROUP_SIZE))
        base.set_submodule(name, OrthoLinear(weight, None, []))
        linear = OrthoLinear(weight, None, state.attached)
        if shape not in parts:
            parts[shape] = _random_stream(shape, density, drawn, generator)
        linear.attach(STREAM, parts[shape])
        streamed.set_submodule(name, linear)
        progress("make the models", done, len(names), {})
    adopt(base, Ortho(None))
    adopt(streamed, state)
    floating.eval().requires_grad_(False)
    for model in (floating, base, streamed):
        fuse_projections(model)
    bases = linears(base)
    for name, linear in linears(streamed).items():
        linear.base = bases[name].base
    return Models(floating, base, streamed)


def states_of(models: Models, batch: int) -> dict[str, tuple[Any, Alpha]]:
    """Model and α by state; ``mixed`` where there are two sequences or more."""
    states: dict[str, tuple[Any, Alpha]] = {
        "fp": (models.floating, None),
        "int4": (models.base, None),
        "alpha0": (models.streamed, 0.0),
        "alpha1": (models.streamed, 1.0),
    }
    if batch > 1:
        states["mixed"] = (models.streamed, [float(row % 2) for row in range(batch)])
    return states


def prompt(batch: int) -> Tensor:
    """Token ids [batch, PROMPT]."""
    return torch.arange(batch * PROMPT).reshape(batch, PROMPT) % TOKENS


def decode(
    models: Models, batch: int, steps: int, progress: Progress = silent
) -> dict[str, Decoded]:
    """Decodes ``steps`` tokens a sequence with a static KV cache, the states in turn.

    Returns:
        Timed forwards by state: ``fp``, ``int4``, ``alpha0``, ``alpha1`` and, with two sequences
        or more, ``mixed`` (every other row open).
    """
    states = states_of(models, batch)
    found = {name: Decoded() for name in states}
    tokens = prompt(batch)
    caches = {
        name: prefilled(*state, tokens, PROMPT + steps + WARM_UP) for name, state in states.items()
    }
    for step in range(-WARM_UP, steps):
        place = torch.tensor([PROMPT + WARM_UP + step])
        for name, (model, setting) in states.items():
            timed = _step(model, setting, tokens[:, :1], caches[name], place)
            if step >= 0:
                _add(found[name], timed)
        progress(f"decode at batch {batch}", max(step + 1, 0), steps, {})
    return found


def _step(model: Any, setting: Any, tokens: Tensor, cache: StaticCache, place: Tensor) -> Decoded:
    if isinstance(getattr(model, "ortho", None), Ortho):
        with gate.alpha(0.0 if setting is None else setting), call_region(model, REGION) as calls:
            seconds = _forward(model, tokens, cache, place)
        return Decoded(
            [seconds], calls.native_op_calls, calls.expected_op_calls, calls.dense_route_calls
        )
    with torch.no_grad():
        return Decoded([_forward(model, tokens, cache, place)])


def _forward(model: Any, tokens: Tensor, cache: StaticCache, place: Tensor) -> float:
    begun = time.perf_counter()
    model(
        input_ids=tokens,
        past_key_values=cache,
        position_ids=place.expand(tokens.shape[0], 1),
        use_cache=True,
    )
    return time.perf_counter() - begun


def _add(total: Decoded, one: Decoded) -> None:
    total.seconds += one.seconds
    total.native_op_calls += one.native_op_calls
    total.expected_op_calls += one.expected_op_calls
    total.dense_route_calls += one.dense_route_calls


def prefilled(model: Any, setting: Alpha, tokens: Tensor, length: int) -> StaticCache:
    """A static cache of ``length`` places after a forward over the prompt."""
    cache = StaticCache(config=model.config, max_cache_len=length)
    opened = gate.alpha(setting) if setting is not None else nullcontext()
    # An index, not a count: the last position as a view would send torch's bf16 matmul of the head
    # through a transposed copy of it, seconds long.
    last = torch.tensor([tokens.shape[1] - 1], device=tokens.device)
    with opened, torch.no_grad():
        model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=last)
    return cache


def _empty(config: LlamaConfig, device: torch.device) -> Any:
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    model.to_empty(device=device)
    # The rotary frequencies are a buffer, which has just been emptied.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.tie_weights()
    return model


def _skeleton(config: LlamaConfig, source: Any) -> Any:
    """A model that shares everything but its linears with ``source``."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    linear = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)
    } - {"lm_head.weight"}
    kept = {name: tensor for name, tensor in source.state_dict().items() if name not in linear}
    model.load_state_dict(kept, strict=False, assign=True)
    model.model.rotary_emb = source.model.rotary_emb
    model.tie_weights()
    return model


def _filled(block: Tensor, shape: Sequence[int]) -> Tensor:
    count = int(torch.Size(shape).numel())
    return block.repeat(-(-count // block.numel()))[:count].reshape(tuple(shape))


def _random_stream(
    shape: tuple[int, int], density: float, noise: Tensor, generator: torch.Generator
) -> CsrLayer:
    mask = torch.rand(shape, generator=generator) < density
    lengths = mask.sum(dim=1).cumsum(0)
    indptr = torch.cat((lengths.new_zeros(1), lengths)).to(torch.int32)
    indices = mask.nonzero()[:, 1].to(torch.int32)
    return CsrLayer(indptr, indices, _filled(noise, indices.shape).to(torch.float16), shape)
