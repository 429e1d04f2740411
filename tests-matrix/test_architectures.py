"""Every architecture in every dtype, with everything that people do with a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForCausalLM

import libortho
from libortho import gate
from libortho.errors import AlphaError
from libortho.evaluate.tolerance import log_prob_tolerance
from libortho.gate import StreamInfo
from libortho.integrations.peft import over_streams
from libortho.linear import CsrStream
from libortho.model import attach_layers, linears, load, stream_parts
from libortho.quantize import quantize
from libortho.streams.base import BaseStream

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ALPHAS = [0, 1, 0.5, {"one": 0.25}, [0, 1, {"one": 0.5}]]
INFO = {name: StreamInfo(name, f"id-{name}", False) for name in ("one", "two")}


@pytest.fixture
def opened(base: Path, make_layer: Callable[..., Any]) -> Any:
    """A model with one sparse stream."""
    model = load(base)
    attach(model, make_layer, "one", "csr")
    return model


def attach(model: Any, make_layer: Callable[..., Any], stream: str, kind: str) -> None:
    shapes = model.ortho.base.layers.items()
    layers = {name: make_layer(shape, kind, seed) for seed, (name, shape) in enumerate(shapes)}
    attach_layers(model, INFO[stream], layers)


def log_probs(model: Any, ids: Tensor, alpha: Any = 0) -> Tensor:
    with torch.no_grad(), gate.alpha(alpha):
        return torch.log_softmax(model(input_ids=ids).logits.float(), -1)


def largest(x: Tensor) -> float:
    return float(x.abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stock_transformers_agrees_at_alpha_0(
    name: str, base: Path, ids: Tensor, opened, dtype: torch.dtype, figures
) -> None:
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    for path, parameter in stock.named_parameters():
        if "experts" in path:  # left in the dtype of their scales, whatever is asked for
            parameter.data = parameter.data.to(dtype)
    model = load(base, dtype=dtype)
    ours, theirs = log_probs(model, ids), log_probs(stock, ids)
    kind = str(dtype).removeprefix("torch.")
    figures[f"alpha0_against_stock_{name}_{kind}"] = largest(ours - theirs)
    if dtype == torch.float32:
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        path = {n: (m.out_features, m.in_features) for n, m in linears(model).items()}
        bound = log_prob_tolerance(path, hidden, model.get_output_embeddings().weight)
        # Experts are on the path of a token, too: at most top-k of them, three matrices each.
        assert largest(ours - theirs) <= (3 if model.ortho.base.manifest.experts else 1) * bound
    else:
        full = log_probs(opened, ids)
        # Two roundings to `dtype` of every activation may part by what one parts from float32.
        assert largest(ours - theirs) <= 4 * largest(theirs - full)
        assert largest(ours - full) <= 4 * largest(theirs - full)


@pytest.mark.parametrize("kind", ["csr", "lowrank"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_obey_their_own_alpha(
    base: Path, ids: Tensor, make_layer, dtype: torch.dtype, kind: str
) -> None:
    model = load(base, dtype=dtype)
    closed = log_probs(model, ids)
    attach(model, make_layer, "one", kind)
    attach(model, make_layer, "two", "csr")
    assert torch.equal(log_probs(model, ids), closed)
    mixed = log_probs(model, ids, [0, {"one": 1}, {"two": 1}])
    assert torch.equal(mixed[0], closed[0])
    for row, stream in ((1, "one"), (2, "two")):
        alone = [{stream: 1} if place == row else 0 for place in range(3)]
        assert torch.equal(mixed[row], log_probs(model, ids, alone)[row])
        assert largest(mixed[row] - closed[row]) > 1e-2
    for part in stream_parts(model, "two").values():
        assert isinstance(part, CsrStream)
        part.values.fill_(torch.nan)
    poisoned = log_probs(model, ids, [0, {"one": 1}, 0])
    assert torch.equal(poisoned[:2], mixed[:2])


def test_caches_generate_alike_and_refuse_another_alpha(opened, ids: Tensor) -> None:
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(ids)
    for alpha in (0, 1, [0, 1, 0.5]):
        with gate.alpha(alpha):
            dynamic = opened.generate(ids, **options)
            static = opened.generate(ids, cache_implementation="static", **options)
            beams = opened.generate(ids, num_beams=2, **options)
        assert torch.equal(dynamic, static)
        assert beams.shape == dynamic.shape
    with torch.no_grad(), gate.alpha(1):
        cache = opened(input_ids=ids, use_cache=True).past_key_values
    with torch.no_grad(), pytest.raises(AlphaError, match="begin with an empty cache"):
        opened(input_ids=ids[:, :1], past_key_values=cache)


def test_one_graph_serves_every_alpha(opened, ids: Tensor) -> None:
    expected = [log_probs(opened, ids, alpha) for alpha in ALPHAS]
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(opened, backend=counter)
    graphs = None
    for alpha, wanted in zip(ALPHAS, expected, strict=True):
        torch.testing.assert_close(log_probs(compiled, ids, alpha), wanted, rtol=0, atol=1e-4)
        # Experts and vision towers break graphs of their own; alpha adds none.
        graphs = graphs or counter.frame_count
        assert counter.frame_count == graphs


def test_checkpointed_gradients_are_the_same(opened, ids: Tensor) -> None:
    def gradients() -> list[Tensor]:
        values = [part.trainable()[0] for part in stream_parts(opened, "one").values()]
        for value in values:
            value.grad = None
        torch.manual_seed(0)  # of dropout
        with gate.alpha([1, 0, 0.5]):
            opened(input_ids=ids, labels=ids).loss.backward()
        return [value.grad.clone() for value in values]

    opened.train()
    expected = gradients()
    opened.gradient_checkpointing_enable({"use_reentrant": False})
    opened.enable_input_require_grads()
    for found, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert any(bool(one.any()) for one in expected)


def test_device_maps_change_no_bit(base: Path, opened, ids: Tensor, tmp_path: Path) -> None:
    for place in ("auto", {"": "cpu"}):
        model = load(base, device_map=place, offload_folder=tmp_path)
        assert torch.equal(log_probs(model, ids), log_probs(opened, ids))


def test_a_stream_learns(name: str, base: Path, tmp_path: Path, figures) -> None:
    data = tmp_path / "private.jsonl"
    data.write_text(json.dumps({"prompt": "The code is", "completion": " 4711 blue"}) + "\n")
    options = libortho.TuneOptions(
        steps=4, density=0.05, lr=0.05, warmup=1, settle=0, replay_pool=2, replay_batch=1,
        replay_window=16, fisher_windows=2,
    )  # fmt: skip
    made = libortho.tune(base, data, tmp_path / "out", options=options)
    figures[f"loss_after_4_steps_{name}"] = made.curve[-1]["loss"] / made.curve[0]["loss"]
    assert made.curve[-1]["loss"] < made.curve[0]["loss"]


def test_an_adapter_becomes_a_stream(base: Path, ids: Tensor, tmp_path: Path) -> None:
    own = Path(shutil.copytree(base, tmp_path / "base"))
    model = load(own)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=sorted(linears(model)))
    adapted = get_peft_model(model, over_streams(config))
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.eval()
    expected = log_probs(adapted, ids)
    adapted.save_pretrained(tmp_path / "adapter")
    libortho.split(own, own, tuned=tmp_path / "adapter")
    streamed = load(own, ["private"])
    torch.testing.assert_close(log_probs(streamed, ids, 1), expected, rtol=0, atol=1e-3)


def test_gptq_rounds_it(name: str, public: Path, tmp_path: Path, figures) -> None:
    base: BaseStream = quantize(public, tmp_path / "base", windows=4)
    worst = max(base.manifest.relative_error.values())
    figures[f"gptq_worst_relative_error_{name}"] = worst
    assert worst < 0.25
    assert base.verify() == []


# Compiling takes most of a minute each, and the graphs are of the same kind.
@pytest.mark.parametrize("name", ["llama"], indirect=True, scope="session")
def test_the_inductor_keeps_no_alpha(name: str, opened, ids: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(opened)
    for alpha in ALPHAS:
        expected = log_probs(opened, ids, alpha)
        torch.testing.assert_close(log_probs(compiled, ids, alpha), expected, rtol=0, atol=1e-3)
