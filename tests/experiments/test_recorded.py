"""Recorded decoding: what a step may do while a CUDA graph records it, and what is counted."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from libortho import gate, ops
from libortho.experiments import performance, recorded
from libortho.experiments.decode import prefilled, prompt, random_models, states_of

CPU = torch.device("cpu")
TINY = LlamaConfig(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=256,
    max_position_embeddings=64,
)
aten = torch.ops.aten
HOST = {
    aten._local_scalar_dense.default,  # waits for the device
    aten.nonzero.default,  # too
    aten.lift_fresh.default,  # brings a Python number or list to the device
    aten.lift_fresh_copy.default,
}


class NoHost(TorchDispatchMode):
    """Fails where a forward reads from the host or tells it something, as a recording does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HOST:
            raise RuntimeError(f"{func} cannot be recorded")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_takes_nothing_from_the_host(batch: int) -> None:
    models = random_models(TINY, 0.05, 0)
    tokens = prompt(batch)
    for model, setting in states_of(models, batch).values():
        cache = prefilled(model, setting, tokens, 32)
        step = recorded.stepper(model, setting, tokens[:, :1], cache)
        with torch.no_grad():
            step(0)
            with NoHost():
                step(1)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_compiled_step_takes_nothing_from_the_host(batch: int) -> None:
    """Every linear of ours is one op there, whose alpha all linears of the step share."""
    models = random_models(TINY, 0.05, 0)
    tokens = prompt(batch)
    states = states_of(models, batch)
    caches = {name: prefilled(*state, tokens, 32) for name, state in states.items()}
    graphs: list[torch.fx.GraphModule] = []
    runs: list[int] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)

        def run(*args: Any) -> Any:  # Dynamo itself traces under no mode of dispatch
            runs.append(len(graphs))
            with NoHost() if len(runs) % 2 == 0 else contextlib.nullcontext():
                return graph(*args)

        return run

    with recorded.compiled([models.floating, models.base, models.streamed], compiler):
        for name, (model, setting) in states.items():
            step = recorded.stepper(model, setting, tokens[:, :1], caches[name])
            with torch.no_grad():
                step(0)
                step(1)
    assert len(runs) == 2 * len(states)
    assert len(graphs) == 3  # one for every alpha
    ops_of = [[str(node.target) for node in graph.graph.nodes] for graph in graphs]
    gated = [sum("gated_linear" in name for name in names) for names in ops_of]
    assert gated == [0, 0, 8]  # q/k/v, o, gate/up, down of two layers
    assert not any("alpha_rows" in name for names in ops_of for name in names)


def test_compiled_models_get_back_the_forwards_they_had() -> None:
    wrapped, plain = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    own = wrapped.forward
    wrapped.forward = own  # as accelerate and others leave it
    with recorded.compiled([wrapped, plain], "eager"):
        assert wrapped.forward is not own
        assert "forward" in vars(plain)
    assert vars(wrapped)["forward"] is own
    assert "forward" not in vars(plain)
    with (
        pytest.raises(RuntimeError, match="no_such_backend"),
        recorded.compiled([wrapped, plain], "no_such_backend"),
    ):
        wrapped(torch.zeros(1, 2))
    assert vars(wrapped)["forward"] is own


def test_a_forward_that_captures_alpha_is_found_out() -> None:
    """The mode above sees what would break a recording."""
    models = random_models(TINY, 0.05, 0)
    with torch.no_grad(), gate.alpha(1.0), NoHost(), pytest.raises(RuntimeError, match="recorded"):
        models.streamed(input_ids=prompt(2))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs whose replays enter nothing, as on a GPU."""

    class Event:
        def __init__(self, **_: Any) -> None: ...
        def record(self) -> None: ...
        def synchronize(self) -> None: ...
        def elapsed_time(self, _: Any) -> float:
            return 5.0

    class Graph:
        def replay(self) -> None: ...

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)


@pytest.mark.skipif(ops.backend().name != "native", reason="the counter is in the native library")
@pytest.mark.usefixtures("pretended")
def test_every_replay_counts_what_was_recorded() -> None:
    found = recorded.decode_recorded(random_models(TINY, 0.05, 0), 2, 4, CPU, compiler="eager")
    assert list(found) == ["fp", "int4", "alpha0", "alpha1", "mixed"]
    for name, one in found.items():
        assert one.seconds == [0.005] * 4
        expected = 0 if name == "fp" else 4 * 8
        assert (one.native_op_calls, one.expected_op_calls) == (expected, expected)
    checks = performance._checks({2: found}, "native")
    assert all(check.held for check in checks)


def test_a_recorded_step_is_the_step() -> None:
    """Under a state captured before it, a forward says what it says under the ambient alpha."""
    models = random_models(TINY, 0.05, 0)
    tokens = prompt(2)
    logits = []
    for stepped in (True, False):
        cache = prefilled(models.streamed, [0.0, 1.0], tokens, 32)
        with torch.no_grad():
            if stepped:
                step = recorded.stepper(models.streamed, [0.0, 1.0], tokens[:, :1], cache)
                logits.append(step(0).logits)
            else:
                with gate.alpha([0.0, 1.0]):
                    out = models.streamed(input_ids=tokens[:, :1], past_key_values=cache)
                logits.append(out.logits)
    assert torch.equal(*logits)
