"""DP-SGD: per-example gradients against autograd, the accountant, and a missing Opacus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from libortho import gate
from libortho.errors import ConfigError
from libortho.model import attach_layers, load
from libortho.privacy.canaries import make_canaries
from libortho.privacy.encode import Encoded, encode, pad
from libortho.tune import dpsgd
from libortho.tune.dpsgd import (
    DPOptions,
    example_gradients,
    noise_for,
    random_supports,
    sparse_parts,
    support_of,
    train_privately,
)

OPEN = {"private": 1.0}
OPTIONS = DPOptions(density=0.05, steps=3, sample_rate=0.5, lr=0.01)


def private(model: Any) -> list[Encoded]:
    return encode(model.ortho.base.checkpoint.tokenizer(), make_canaries(6, 0).members)


def laid(base: Path, density: float = 0.05) -> Any:
    model = load(base)
    layers = random_supports(model, density, seed=0)
    attach_layers(model, gate.StreamInfo("private", "", False), layers)
    return model


def test_the_support_is_a_function_of_the_seed_and_the_density_alone(tiny_base: Path) -> None:
    model = load(tiny_base)
    one, again = (random_supports(model, 0.05, seed=3) for _ in range(2))
    other = random_supports(model, 0.05, seed=4)
    for name, layer in one.items():
        assert torch.equal(layer.indices, again[name].indices)
        assert not torch.equal(layer.indices, other[name].indices)
        assert layer.nnz == round(layer.shape[0] * layer.shape[1] * 0.05)
        assert not layer.values.any()


def test_each_examples_gradient_is_that_of_autograd(tiny_base: Path) -> None:
    model = laid(tiny_base)
    examples = private(model)
    parts = sparse_parts(model, "private")
    parameters = {name: part.trainable()[0] for name, part in parts.items()}
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters.values():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    supports = {name: support_of(part) for name, part in parts.items()}
    lengths = {len(one.input_ids) for one in examples}
    assert len(lengths) > 1
    with gate.alpha(OPEN):
        ours, losses = example_gradients(model, supports, pad(examples))
        for index, example in enumerate(examples):
            ids = torch.tensor([example.input_ids])
            logits = model(ids).logits[0, example.prompt_length - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, example.prompt_length :])
            wanted = torch.autograd.grad(loss, list(parameters.values()))
            assert losses[index].item() == pytest.approx(loss.item(), rel=1e-4)
            for name, gradient in zip(parameters, wanted, strict=True):
                scale = gradient.abs().max()
                # Sums of at most 50 tokens and 128 channels in fp32, in another order.
                assert (ours[name][index] - gradient).abs().max() <= 1e-4 * scale


def test_epsilon_is_the_accountants_for_every_step_that_was_taken(tiny_base: Path) -> None:
    accountants = pytest.importorskip("opacus.accountants")
    model = laid(tiny_base)
    spent = train_privately(
        model, "private", private(model), OPTIONS, noise_multiplier=1.3, delta=0.1, alpha=OPEN
    )
    accountant = accountants.RDPAccountant()
    for _ in range(OPTIONS.steps):
        accountant.step(noise_multiplier=1.3, sample_rate=OPTIONS.sample_rate)
    assert spent.epsilon == pytest.approx(accountant.get_epsilon(0.1))


def test_the_noise_for_an_epsilon_spends_it(tiny_base: Path) -> None:
    pytest.importorskip("opacus")
    noise = noise_for(2.0, 0.05, OPTIONS)
    model = laid(tiny_base)
    spent = train_privately(
        model, "private", private(model), OPTIONS, noise_multiplier=noise, delta=0.05, alpha=OPEN
    )
    assert spent.epsilon == pytest.approx(2.0, abs=0.02)
    assert spent.epsilon <= 2.0


def test_one_example_moves_the_sum_by_no_more_than_the_clip(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the accountant's ε rests on, seen at the optimiser: neighbouring data, no noise."""
    pytest.importorskip("opacus")
    seen: list[torch.Tensor] = []

    class Watched(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            groups = [parameter for group in self.param_groups for parameter in group["params"]]
            seen.append(torch.cat([parameter.grad.flatten() for parameter in groups]).clone())
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    options = OPTIONS.model_copy(update={"steps": 1, "sample_rate": 1.0, "clip": 0.01})
    for left_out in (0, 1):
        model = laid(tiny_base)
        examples = private(model)
        train_privately(
            model,
            "private",
            examples[left_out:],
            options,
            noise_multiplier=0.0,
            delta=0.1,
            alpha=OPEN,
        )
    # Opacus divides the sum by the expected size of a sample.
    whole, without = seen[0] * 6, seen[1] * 5
    assert 0 < (whole - without).norm() <= 0.01 * (1 + 1e-4)


def test_without_noise_there_is_no_epsilon_and_the_secrets_are_learned(tiny_base: Path) -> None:
    pytest.importorskip("opacus")
    model = laid(tiny_base, density=0.2)
    options = OPTIONS.model_copy(update={"steps": 25, "lr": 0.03})
    spent = train_privately(
        model, "private", private(model), options, noise_multiplier=0.0, delta=0.1, alpha=OPEN
    )
    assert spent.epsilon is None
    assert spent.losses[-1] < 0.7 * spent.losses[0]


def test_a_missing_opacus_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpsgd, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'libortho\[dp\]'"):
        noise_for(1.0, 0.1, OPTIONS)
