"""A gate on embeddings, norms, biases and the head: tuned where it is open, public elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from libortho import gate
from libortho.errors import AlphaError, ConfigError, UnsupportedLayer
from libortho.gate import StreamInfo
from libortho.model import attach_layers, detach, load
from libortho.outside import attach_outside, refused
from libortho.quantize import quantize
from libortho.streams.layers import DenseLayer

PRIVATE = StreamInfo("private", "id-private", public=False)
OTHER = StreamInfo("other", "id-other", public=False)
EMBEDDING, NORM = "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"


def logits(model, ids, alpha=0.0):
    with torch.no_grad(), gate.alpha(alpha):
        return model(input_ids=ids).logits


def difference(model, name: str, seed: int = 0, size: float = 0.05) -> DenseLayer:
    generator = torch.Generator().manual_seed(seed)
    shape = model.get_parameter(name).shape
    return DenseLayer((size * torch.randn(shape, generator=generator)).half())


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 512, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def untied(tmp_path_factory, make_tiny_checkpoint) -> Path:
    """A base whose head is a matrix of its own and whose query projections have biases."""
    folder = tmp_path_factory.mktemp("untied")
    make_tiny_checkpoint(folder / "public", tied=False)
    config = LlamaConfig.from_pretrained(folder / "public")
    config.attention_bias = True
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    nn.init.normal_(model.model.layers[0].self_attn.q_proj.bias)
    model.save_pretrained(folder / "public")
    return quantize(folder / "public", folder / "base", method="mse").path


def expected(base: Path, layers, ids) -> torch.Tensor:
    """Logits of a base whose parameters were changed for good."""
    model = load(base)
    for name, layer in layers.items():
        model.get_parameter(name).data += layer.dense()
    return logits(model, ids)


@pytest.mark.parametrize("names", [[EMBEDDING], [NORM], [EMBEDDING, NORM, "model.norm.weight"]])
def test_alpha_1_is_the_changed_model(tiny_base, ids, names) -> None:
    """The tied head moves with the embedding, as it does in the tuned model."""
    model = load(tiny_base)
    closed = logits(model, ids)
    layers = {name: difference(model, name, seed) for seed, name in enumerate(names)}
    attach_layers(model, PRIVATE, layers)
    assert torch.equal(logits(model, ids), closed)
    opened = logits(model, ids, 1)
    # Two ways to round the same sums: 2^-24 times a few thousand terms, of logits of size 10.
    torch.testing.assert_close(opened, expected(tiny_base, layers, ids), rtol=1e-4, atol=1e-3)
    assert float((opened - closed).abs().max()) > 0.1


def test_the_head_and_biases_of_an_untied_model(untied, ids) -> None:
    model = load(untied)
    names = ["lm_head.weight", EMBEDDING, "model.layers.0.self_attn.q_proj.bias"]
    layers = {name: difference(model, name, seed) for seed, name in enumerate(names)}
    for name, layer in layers.items():
        alone = load(untied)
        closed = logits(alone, ids)
        attach_layers(alone, PRIVATE, {name: layer})
        opened = logits(alone, ids, 1)
        changed = expected(untied, {name: layer}, ids)
        torch.testing.assert_close(opened, changed, rtol=1e-4, atol=1e-3)
        assert not torch.equal(opened, closed), name


def test_between_0_and_1_the_parameter_moves_by_alpha(tiny_base, ids) -> None:
    model = load(tiny_base)
    layers = {"model.norm.weight": difference(model, "model.norm.weight", size=0.5)}
    attach_layers(model, PRIVATE, layers)
    half = {name: DenseLayer(layer.delta / 4) for name, layer in layers.items()}
    found = logits(model, ids, 0.25)
    torch.testing.assert_close(found, expected(tiny_base, half, ids), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [EMBEDDING, NORM])
def test_closed_rows_do_not_feel_poison(tiny_base, ids, name: str, value: float) -> None:
    model = load(tiny_base)
    closed = logits(model, ids)
    poison = torch.full(model.get_parameter(name).shape, value)
    attach_layers(model, PRIVATE, {name: DenseLayer(poison)})
    assert torch.equal(logits(model, ids), closed)
    mixed = logits(model, ids, [0, 1, 0, 1])
    assert torch.equal(mixed[[0, 2]], closed[[0, 2]])
    assert not bool(torch.isfinite(mixed[[1, 3]]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_mixed_batch_is_its_solo_run(tiny_base, ids, dtype) -> None:
    model = load(tiny_base, dtype=dtype)
    attach_layers(model, PRIVATE, {n: difference(model, n) for n in (EMBEDDING, NORM)})
    attach_layers(model, OTHER, {n: difference(model, n, seed=1) for n in (EMBEDDING,)})
    settings = [0, {"private": 1}, {"other": 0.5}, {"private": 0.5, "other": 1}]
    mixed = logits(model, ids, settings)
    for row, setting in enumerate(settings):
        assert torch.equal(mixed[row], logits(model, ids, setting)[row])


def test_detaching_leaves_nothing(tiny_base, ids) -> None:
    model = load(tiny_base)
    keys, closed = set(model.state_dict()), logits(model, ids)
    layers = {name: difference(model, name) for name in (EMBEDDING, NORM)}
    attach_layers(model, PRIVATE, layers)
    attach_layers(model, OTHER, {EMBEDDING: difference(model, EMBEDDING, 1)})
    both = logits(model, ids, {"private": 1, "other": 1})
    detach(model, "other")
    alone = load(tiny_base)
    attach_layers(alone, PRIVATE, layers)
    assert torch.equal(logits(model, ids, 1), logits(alone, ids, 1))
    assert not torch.equal(logits(model, ids, 1), both)
    detach(model, "private")
    assert set(model.state_dict()) == keys
    assert torch.equal(logits(model, ids), closed)
    assert not model.get_input_embeddings()._forward_hooks


def test_it_generates_row_by_row(tiny_base, ids) -> None:
    model = load(tiny_base)
    attach_layers(model, PRIVATE, {EMBEDDING: difference(model, EMBEDDING, size=0.3)})

    def produce(alpha):
        with gate.alpha(alpha):
            return model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, pad_token_id=0
            )

    mixed, closed, opened = produce([0, 1, 0, 1]), produce(0), produce(1)
    assert torch.equal(mixed[[0, 2]], closed[[0, 2]])
    assert torch.equal(mixed[[1, 3]], opened[[1, 3]])
    assert not torch.equal(closed, opened)


def test_norms_that_add_one_to_their_weight() -> None:
    """As Gemma's do: such a norm is affine in its weight, and not linear."""

    class PlusOneNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8), requires_grad=False)

        def forward(self, x):
            return (1 + self.weight) * x / x.norm(dim=-1, keepdim=True)

    model = nn.Sequential(PlusOneNorm())
    delta, x = torch.randn(8).half(), torch.randn(2, 3, 8)
    attach_outside(model, "private", {"0.weight": DenseLayer(delta)}, [PRIVATE])
    with gate.alpha(1):
        found = model[0](x)
    model[0]._forward_hooks.clear()
    model[0].weight += delta.float()
    torch.testing.assert_close(found, model[0](x))


def test_what_no_gate_can_act_on_is_named(tiny_base, tiny_model: PreTrainedModel) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates = nn.Parameter(torch.zeros(2, 3, 4))

    holder = nn.ModuleDict({"experts": Experts()})
    assert refused(holder, ["experts.gates", "nothing.weight"]) == [
        "experts.gates: a parameter of Experts, which is no embedding, linear or norm of one input",
        "nothing.weight: no parameter of the model",
    ]
    assert refused(tiny_model, [EMBEDDING, NORM]) == []
    model = load(tiny_base)
    before = set(model.state_dict())
    with pytest.raises(UnsupportedLayer, match="nothing"):
        attach_layers(
            model,
            PRIVATE,
            {NORM: difference(model, NORM), "nothing": DenseLayer(torch.zeros(1).half())},
        )
    assert set(model.state_dict()) == before


class GatedNorm(nn.RMSNorm):
    def forward(self, x, gate):
        return super().forward(x * gate)


def test_modules_that_look_up_something_else_than_their_input_are_refused() -> None:
    """OPT's positions are looked up by a mask; others norm what they look up, or take a gate."""
    config = OPTConfig(
        vocab_size=16, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.device("meta"):
        opt = OPTForCausalLM(config)
    names = ["model.decoder.embed_positions.weight", "model.decoder.embed_tokens.weight"]
    assert [line.split(":")[0] for line in refused(opt, names)] == names[:1]
    assert refused(nn.ModuleDict({"norm": GatedNorm(4)}), ["norm.weight"])
    assert not refused(nn.ModuleDict({"norm": nn.RMSNorm(4)}), ["norm.weight"])


@pytest.mark.parametrize("batched", [True, False])
def test_positions_that_a_batch_shares_have_no_alpha_of_their_own(batched: bool) -> None:
    """Spread over positions, the alpha of one sequence would act on the rows of another."""
    model = nn.Sequential(nn.Embedding(8, 4)).requires_grad_(False)
    positions = torch.arange(6)[None] if batched else torch.arange(6)
    closed = model[0](positions)
    attach_outside(model, "private", {"0.weight": DenseLayer(torch.ones(8, 4).half())}, [PRIVATE])

    def look(alpha):
        with gate.alpha(alpha):
            state = gate.capture([PRIVATE], 2, torch.device("cpu"))
        with gate.captured(state):
            return model[0](positions)

    assert torch.equal(look(0), closed)
    assert torch.equal(look(1), closed + 1)
    with pytest.raises(AlphaError, match="cannot be shared by 2 sequences of different alpha"):
        look([0, 1])


def test_what_does_not_fit_the_model_is_refused_at_once(tiny_base) -> None:
    model = load(tiny_base)
    before = set(model.state_dict())
    model.model.norm.to("meta")
    layers = {
        NORM: DenseLayer(torch.zeros(3).half()),
        "model.norm.weight": DenseLayer(torch.zeros(128).half()),
    }
    with pytest.raises(ConfigError, match=r"is \(3,\), expected \(128,\); .*norm.* is offloaded"):
        attach_layers(model, PRIVATE, layers)
    assert set(model.state_dict()) == before


def test_one_compiled_graph_serves_every_alpha(tiny_base, ids) -> None:
    model = load(tiny_base)
    closed = logits(model, ids)
    attach_layers(model, PRIVATE, {n: difference(model, n) for n in (EMBEDDING, NORM)})
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for alpha in (0, 1, [0, 1, 0, 0.5]):
        assert torch.equal(logits(compiled, ids, alpha), logits(model, ids, alpha))
    assert torch.equal(logits(compiled, ids, [1, 0, 1, 0])[[1, 3]], closed[[1, 3]])
