"""Hooks on linears act as changed weights would, on plain models and on ours, and then are gone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from libortho import gate
from libortho.model import linears, load
from libortho.privacy.attacks.gradient import gradient_norms
from libortho.privacy.attacks.linears import (
    adapters,
    changed_weights,
    decoder_linears,
    dense_weight,
)
from libortho.privacy.encode import encode
from libortho.privacy.token_scores import token_scores

IDS = torch.arange(1, 25).view(2, 12)


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_changed_weight_acts_as_if_it_were_stored(kind: str, unseen_model) -> None:
    model = gpt2() if kind == "gpt2" else unseen_model
    stored = copy.deepcopy(model)
    found = decoder_linears(stored)
    assert len(found) == (8 if kind == "gpt2" else 14)
    assert not any("lm_head" in name for name in found)
    for module in found.values():
        module.weight.data *= 0.5
    before = logits(model)
    with changed_weights(model, lambda weight: weight * 0.5):
        assert torch.allclose(logits(model), logits(stored), atol=1e-4)
        assert not torch.allclose(logits(model), before, atol=1e-2)
    assert torch.equal(logits(model), before)


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


def test_a_fresh_adapter_changes_nothing_and_leaves_nothing(unseen_model) -> None:
    before = logits(unseen_model)
    with adapters(unseen_model, rank=4, scaling=2.0, seed=0) as parameters:
        assert len(parameters) == 28
        assert all(parameter.requires_grad for parameter in parameters)
        assert torch.equal(logits(unseen_model), before)
        with torch.no_grad():
            parameters[1].fill_(0.1)
        assert not torch.equal(logits(unseen_model), before)
    assert torch.equal(logits(unseen_model), before)
