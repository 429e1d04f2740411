"""Projections that read one input as one linear: what they say, and what is never handed out."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, Qwen2Config

import libortho
from libortho import gate, ops
from libortho.errors import ConfigError, UnsupportedLayer
from libortho.fuse import FusedPart, fuse_projections
from libortho.gate import StreamInfo
from libortho.integrations.peft import over_streams
from libortho.linear import CsrStream
from libortho.model import attach_layers, call_region, detach, linear, linears, load, memory
from libortho.quantize import quantize
from libortho.streams.base import BaseStream
from libortho.streams.layers import DenseLayer
from libortho.streams.ortho_writer import write_stream

BOTH = [StreamInfo("private", "id-private", False), StreamInfo("crm", "id-crm", False)]
ALPHAS = [0, {"private": 1}, {"private": 0.5, "crm": 1}, [{"crm": 1}, {}, {"private": 0.25}, {}]]
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "initializer_range": 0.08,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, make_tiny_checkpoint) -> dict[str, Path]:
    """Bases of a Llama with one key-value head for four, and of a Qwen2, which has biases."""
    from transformers import AutoModelForCausalLM

    found = {}
    for config in (LlamaConfig(**SHAPE), Qwen2Config(**SHAPE)):
        folder = tmp_path_factory.mktemp(config.model_type)
        make_tiny_checkpoint(folder / "public")  # its tokenizer
        torch.manual_seed(0)
        public = AutoModelForCausalLM.from_config(config)
        for name, parameter in public.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
        public.generation_config.do_sample = False
        public.save_pretrained(folder / "public")
        found[config.model_type] = quantize(folder / "public", folder / "base", method="mse").path
    return found


@pytest.fixture
def pair(bases: dict[str, Path], make_layer) -> Callable[..., tuple[Any, Any]]:
    """``pair(kind, dtype)``: a model with two streams of different layers, and its fused twin."""

    def make(kind: str = "llama", dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        model = load(bases[kind], dtype=dtype)
        shapes = {name: one.base.shape for name, one in linears(model).items()}
        lacking = ("k_proj", "up_proj")
        layers = {name: make_layer(shape, seed=1) for name, shape in shapes.items()}
        attach_layers(model, BOTH[0], layers)
        few = {name: make_layer(shape, seed=2) for name, shape in shapes.items()}
        few = {name: layer for name, layer in few.items() if not name.endswith(lacking)}
        attach_layers(model, BOTH[1], {n: one for n, one in few.items() if "layers.0.mlp" not in n})
        fused = copy.deepcopy(model)
        fuse_projections(fused)
        return model, fused

    return make


def logits(model: Any, ids: Tensor, alpha: Any) -> Tensor:
    with torch.no_grad(), gate.alpha(alpha):
        return model(input_ids=ids).logits


def same(found: Tensor, expected: Tensor) -> bool:
    """Bit for bit where our kernel sums: its sums do not depend on N, those of torch's may."""
    if ops.backend().name == "native":
        return torch.equal(found, expected)
    return bool((found - expected).abs().max() < 1e-2 * expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_fused_model_says_what_the_model_says(pair, ids, kind: str, dtype: torch.dtype) -> None:
    model, fused = pair(kind, dtype)
    assert len(linears(model)) == 14
    assert len(linears(fused)) == 8
    for alpha in ALPHAS:
        expected = logits(model, ids, alpha)
        # More than 16 rows of float32 go to torch's matmul.
        tolerance = (1e-5 if dtype == torch.float32 else 1e-2) * float(expected.abs().max())
        assert float((logits(fused, ids, alpha) - expected).abs().max()) < tolerance
        assert same(logits(fused, ids[:, :3], alpha), logits(model, ids[:, :3], alpha))
    shut, opened = (logits(fused, ids, alpha) for alpha in ALPHAS[:2])
    assert float((shut - opened).abs().max()) > 0.1


def test_it_generates_the_same_tokens(pair, ids) -> None:
    def tokens(model: Any, alpha: Any) -> Tensor:
        with gate.alpha(alpha):
            return model.generate(
                ids[:2], attention_mask=torch.ones_like(ids[:2]), max_new_tokens=8, pad_token_id=0
            )

    model, fused = pair()
    found = [tokens(fused, alpha) for alpha in ({}, {"private": 1}, [{"crm": 1}, {}])]
    for one, alpha in zip(found, ({}, {"private": 1}, [{"crm": 1}, {}]), strict=True):
        assert torch.equal(one, tokens(model, alpha))
    assert not torch.equal(found[0], found[1])


def test_closed_it_is_the_fused_base_bit_for_bit(bases, pair, ids) -> None:
    _, fused = pair()
    with torch.no_grad():
        for module in linears(fused).values():
            for name in module.streams:
                module.part(name).values.fill_(float("nan"))
    assert torch.equal(logits(fused, ids, 0), logits(load(bases["llama"], fuse=True), ids, 0))


def test_fused_parts_are_the_parts_in_their_order(pair) -> None:
    model, fused = pair("qwen2")
    for path in ("model.layers.0.self_attn", "model.layers.0.mlp"):
        old, new = model.get_submodule(path), fused.get_submodule(path)
        leaves = [leaf for leaf, one in new.named_children() if isinstance(one, FusedPart)]
        whole = linears(fused)[f"{path}.{'qkv_proj' if len(leaves) == 3 else 'gate_up_proj'}"]
        for leaf in leaves:
            part, before = getattr(new, leaf), getattr(old, leaf)
            assert (part.in_features, part.out_features) == (128, before.out_features)
            assert torch.equal(part.weight, before.weight)
            assert (part.bias is None) == (before.bias is None)
            assert part.bias is None or torch.equal(part.bias, before.bias)
        for name in whole.streams:
            stream = whole.part(name)
            assert isinstance(stream, CsrStream)
            blocks = [
                one.part(name).layer().dense()
                if name in (one := getattr(old, leaf)).streams
                else torch.zeros(one.base.shape)
                for leaf in leaves
            ]
            assert stream.layer().problems() == []
            assert torch.equal(stream.layer().dense(), torch.cat(blocks))
    assert "crm" not in linears(fused)["model.layers.0.mlp.gate_up_proj"].streams


def test_bytes_and_calls_are_those_of_the_fused_linears(pair, ids) -> None:
    model, fused = pair()
    before, after = memory(model), memory(fused)
    assert after["base"] == before["base"]
    assert before["private"] * 0.9 < after["private"] < before["private"] * 1.1
    for batch in (ids, ids[:, :1]):
        with gate.alpha({"private": 1}), call_region(fused, "fused") as region:
            fused(input_ids=batch)
        assert region.expected_op_calls == 8
        if ops.backend().name == "native":
            assert region.native_op_calls == 8


def test_the_separate_weights_are_gone(tiny_base: Path) -> None:
    model = load(tiny_base)
    old = [weakref.ref(one.base.tiles) for one in linears(model).values()]
    fuse_projections(model)
    gc.collect()
    assert sum(one() is not None for one in old) == 4  # o_proj and down_proj of two blocks


def test_load_fuses_what_it_has_attached(own_base: Path, make_layers, ids) -> None:
    write_stream(
        own_base / "ortho" / "private",
        name="private",
        base_id=BaseStream.open(own_base).id,
        public=False,
        method="test",
        guarantee="none",
        layers=make_layers().items(),
    )
    plain = load(own_base, ["private"])
    fused = libortho.load(own_base, ["private"], fuse=True)
    assert len(linears(fused)) == 8
    assert not fused.training
    assert not any(one.training for one in linears(fused).values())
    assert same(logits(fused, ids[:, :3], 1), logits(plain, ids[:, :3], 1))
    for place in ({"": "cpu"}, {"model.layers.1": "disk", "": "cpu"}):
        options = {"device_map": place, "offload_folder": own_base.parent / "offload"}
        moved = load(own_base, ["private"], fuse=True, **options)
        assert torch.equal(logits(moved, ids, 1), logits(fused, ids, 1))
    detach(fused, "private")
    assert memory(fused).keys() == {"base"}
    assert torch.equal(logits(fused, ids, 0), logits(load(own_base, fuse=True), ids, 0))


def test_it_compiles_into_one_graph_for_every_alpha(pair, ids) -> None:
    _, fused = pair("qwen2")
    expected = [logits(fused, ids, alpha) for alpha in ALPHAS]
    graphs: list[Any] = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module.graph)
        return module.forward

    torch._dynamo.reset()
    fused.forward = torch.compile(fused.forward, fullgraph=True, backend=backend)
    for alpha, wanted in zip(ALPHAS, expected, strict=True):
        assert torch.equal(logits(fused, ids, alpha), wanted)
    (graph,) = graphs
    assert sum("gated_linear" in str(node.target) for node in graph.nodes) == 8
    assert all(one._shared.kept is None for one in fused.modules() if isinstance(one, FusedPart))


def test_gradients_pass_checkpointed_blocks(pair, ids) -> None:
    found = []
    for model in pair():
        inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
        model.train()
        model.gradient_checkpointing_enable()
        with gate.alpha({"private": 1}):
            loss = model(inputs_embeds=inputs, labels=ids).loss
        loss.backward()
        found.append(inputs.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-6)


def test_floating_point_projections_are_fused_too(tiny_model, ids) -> None:
    with torch.no_grad():
        expected = tiny_model(input_ids=ids).logits
        fuse_projections(tiny_model)
        assert sum(isinstance(one, nn.Linear) for one in tiny_model.modules()) == 8 + 1
        found = tiny_model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_no_stream_and_no_adapter_is_laid_over_a_fused_model(tiny_base, make_layers) -> None:
    model = load(tiny_base, fuse=True)
    with pytest.raises(ConfigError, match=r"'private': .*fused; load it anew.*without fuse=True"):
        attach_layers(model, BOTH[0], make_layers())
    with pytest.raises(ConfigError, match="q_proj is FusedPart, not a converted linear"):
        linear(model, "model.layers.0.self_attn.q_proj")
    for name in ("q_proj", "qkv_proj"):
        with pytest.raises(UnsupportedLayer, match="load the model without fuse=True"):
            peft.get_peft_model(model, over_streams(peft.LoraConfig(target_modules=[name])))


def test_what_is_fused_is_not_fused_again(tiny_base) -> None:
    with pytest.raises(ConfigError, match="LlamaForCausalLM are fused already"):
        fuse_projections(load(tiny_base, fuse=True))


def test_what_replaces_a_fused_linear_acts(tiny_model, ids) -> None:
    """As the adapter that PEFT lays over it."""
    fuse_projections(tiny_model)
    lora = peft.LoraConfig(target_modules=["qkv_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_model, lora)
    with torch.no_grad():
        found = adapted(input_ids=ids).logits
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(input_ids=ids).logits, found)


def test_a_model_without_such_projections_says_so() -> None:
    config = GPTNeoXConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    model = GPTNeoXForCausalLM(config)
    with pytest.raises(ConfigError, match=r"nothing to fuse in GPTNeoX.*q_proj, k_proj, v_proj or"):
        fuse_projections(model)


@pytest.mark.parametrize("what", ["lowrank", "dense", "bias", "hook", "trained"])
def test_what_stays_apart_is_named(bases, make_layer, ids, caplog, what: str) -> None:
    model = load(bases["qwen2"])
    name = "model.layers.1.self_attn.v_proj"
    layer = make_layer(
        linear(model, name).base.shape, what if what in ("lowrank", "dense") else "csr"
    )
    layers = (
        {f"{name}.bias": DenseLayer(torch.ones(32).half())} if what == "bias" else {name: layer}
    )
    attach_layers(model, BOTH[0], layers)
    if what == "hook":
        linear(model, name).register_forward_hook(lambda module, args, output: output * 2)
    if what == "trained":
        linear(model, name).part("private").trainable()
    expected = logits(model, ids[:, :3], 1)
    with caplog.at_level(logging.WARNING):
        fuse_projections(model)
    assert "model.layers.1.self_attn.qkv_proj: v_proj" in caplog.text
    assert "layers.0" not in caplog.text
    assert len(linears(model)) == 10
    assert same(logits(model, ids[:, :3], 1), expected)


def test_rows_that_are_no_whole_tiles_stay_apart(tmp_path, make_tiny_checkpoint) -> None:
    from transformers import LlamaForCausalLM

    make_tiny_checkpoint(tmp_path / "public")
    config = LlamaConfig(**SHAPE | {"num_attention_heads": 8, "head_dim": 16})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "public")
    base = quantize(tmp_path / "public", tmp_path / "base", method="absmax")
    model = load(base.path, fuse=True)
    assert set(linears(model)) >= {
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.self_attn.k_proj",
    }
