"""Hooks on linears act as changed weights would, on plain models and on ours, and then are gone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
)

from libortho import gate
from libortho.errors import UnsupportedLayer
from libortho.model import linears, load
from libortho.privacy.attacks.gradient import gradient_norms
from libortho.privacy.attacks.linears import (
    adapters,
    changed_weights,
    decoder_linears,
    dense_weight,
    expert_stacks,
)
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.token_scores import token_scores

IDS = torch.arange(1, 25).view(2, 12)


SMALL: dict[str, Any] = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2),
    "opt": lambda: OPTConfig(**SMALL, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64),
    "mixtral": lambda: MixtralConfig(
        **SMALL, hidden_size=32, intermediate_size=64, num_key_value_heads=2, num_local_experts=4
    ),
    "shared": lambda: LlamaConfig(**SMALL, hidden_size=32, intermediate_size=64),
}


def small(kind: str) -> Any:
    """A random model; of ``shared`` both blocks are one MLP, called twice in a forward."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if kind == "shared":
        model.model.layers[1].mlp = model.model.layers[0].mlp
    return model.eval().requires_grad_(False)


def matrices(model: Any) -> list[torch.nn.Parameter]:
    """What attacks on weights reach: of every linear and every stack of experts, once each."""
    return [module.weight for module in decoder_linears(model).values()] + [
        getattr(module, name) for module, name in expert_stacks(model).values()
    ]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


COUNTS = {"gpt2": (8, 0), "opt": (12, 0), "mixtral": (8, 4), "shared": (11, 0)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_changed_weight_acts_as_if_it_were_stored(kind: str) -> None:
    model = small(kind)
    stored = copy.deepcopy(model)
    assert (len(decoder_linears(model)), len(expert_stacks(model))) == COUNTS[kind]
    assert not any("lm_head" in name for name in decoder_linears(model))
    for weight in matrices(stored):
        weight.data *= 0.5
    before = logits(model)
    with changed_weights(model, lambda weight: weight * 0.5):
        assert torch.allclose(logits(model), logits(stored), atol=1e-4)
        assert not torch.allclose(logits(model), before, atol=1e-2)
    assert torch.equal(logits(model), before)


def test_each_expert_is_changed_by_itself() -> None:
    shapes = []
    with changed_weights(small("mixtral"), lambda weight: shapes.append(weight.shape) or weight):
        pass
    assert sorted(set(shapes)) == [(32, 32), (32, 64), (128, 32)]
    assert len(shapes) == 8 + 4 * 4


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradient_norms_are_those_of_autograd(kind: str) -> None:
    model = small(kind)
    encoded = [Encoded(tuple(range(1, 13)), 5), Encoded(tuple(range(20, 29)), 4)]
    found = gradient_norms(model, encoded)
    weights = matrices(model)
    assert not any(weight.requires_grad for weight in weights)
    model.requires_grad_(True)
    for item, norm in zip(encoded, found, strict=True):
        output = model(torch.tensor([item.input_ids])).logits[0, item.prompt_length - 1 : -1]
        loss = torch.nn.functional.cross_entropy(output, torch.tensor(item.completion_ids))
        gradients = torch.autograd.grad(loss, weights)
        truth = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
        assert norm == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_reaches_every_matrix_and_goes_again(kind: str) -> None:
    model = small(kind)
    before = logits(model)
    with adapters(model, rank=4, scaling=2.0, seed=0) as parameters:
        assert len(parameters) == 2 * len(matrices(model))
        assert torch.equal(logits(model), before)
        with torch.enable_grad():
            model(IDS).logits.square().sum().backward()
        assert all(bool(b.grad.abs().max() > 0) for b in parameters[1::2])
        with torch.no_grad():
            parameters[-1].fill_(0.1)
        assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)


def test_a_model_without_known_matrices_is_refused() -> None:
    """All of these weights would stay as they are, and the attack would report a calm model."""
    model = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1)
    ).eval()
    for block in model.backbone.layers:
        block.mixer = torch.nn.Identity()
    with pytest.raises(UnsupportedLayer, match="MambaForCausalLM: no linear layer"):
        gradient_norms(model, [Encoded((1, 2, 3), 1)])
    with pytest.raises(UnsupportedLayer), changed_weights(model, lambda weight: weight):
        pass
    with pytest.raises(UnsupportedLayer), adapters(model, 4, 2.0, 0):
        pass


def test_rows_that_cannot_be_told_apart_are_refused() -> None:
    """A layer called on one row per example and token, but of a pooled sequence."""
    model = small("opt")
    layer = model.model.decoder.layers[0].fc1
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0][:-1],))
    layer.register_forward_hook(
        lambda module, inputs, output: torch.cat([output, output[-1:]]), prepend=True
    )
    with pytest.raises(UnsupportedLayer, match="fc1"):
        gradient_norms(model, [Encoded((1, 2, 3), 1), Encoded((4, 5, 6), 1)])


def test_ours_and_a_plain_model_of_the_same_weights_are_attacked_alike(
    tiny_base: Path, unseen_model, tiny_tokenizer, canaries
) -> None:
    ours, plain = load(tiny_base), copy.deepcopy(unseen_model)
    for name, module in linears(ours).items():
        plain.get_submodule(name).weight.data = dense_weight(module)
    encoded = encode(tiny_tokenizer, canaries.members)[:4]
    with gate.alpha(0.0), changed_weights(ours, lambda weight: weight * 0.7):
        with changed_weights(plain, lambda weight: weight * 0.7):
            theirs = [one.nll for one in token_scores(plain, encoded)]
        assert [one.nll for one in token_scores(ours, encoded)] == pytest.approx(theirs, rel=1e-3)
    assert gradient_norms(ours, encoded) == pytest.approx(gradient_norms(plain, encoded), rel=1e-3)
