"""The Fisher information of INT4 layers, against autograd on dense weights, one example a time."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from libortho import gate
from libortho.errors import NumericsError
from libortho.gate import StreamInfo
from libortho.model import attach_layers, linear, linears
from libortho.privacy.encode import Encoded, pad
from libortho.sieve import contrast, top_k
from libortho.tune import fisher as module
from libortho.tune.fisher import fisher, groups
from libortho.tune.options import tune_options
from libortho.tune.support import contrast_supports

PRIVATE = StreamInfo("private", "id-private", public=False)


def batch_of(encoded: list[Encoded]):
    batch = pad(encoded)
    position = torch.arange(batch.input_ids.shape[1])
    wanted = (position >= batch.prompt_lengths[:, None]) & (batch.attention_mask == 1)
    return batch.input_ids, batch.attention_mask, wanted


def naive(dense: LlamaForCausalLM, names: list[str], encoded: list[Encoded]):
    """Square each example's gradient of its completion's log-probability, and add up."""
    weights = [dense.get_submodule(name).weight.requires_grad_() for name in names]
    sums = [torch.zeros_like(weight) for weight in weights]
    for item in encoded:
        ids = torch.tensor([item.input_ids])
        log_probs = torch.log_softmax(dense(input_ids=ids).logits[0], -1)
        targets = ids[0, item.prompt_length :]
        rows = log_probs[item.prompt_length - 1 : -1]
        total = rows.gather(1, targets[:, None]).sum()
        for place, gradient in enumerate(torch.autograd.grad(total, weights)):
            sums[place] += gradient.square()
    return dict(zip(names, sums, strict=True))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("size", [1, 2])
def test_it_is_the_sum_of_squared_gradients_of_every_example(
    model, tiny_model, private, make_layers, alpha: float, size: int
) -> None:
    layers = make_layers()
    attach_layers(model, PRIVATE, layers)
    names = list(linears(model))
    for name in names:
        weight = linear(model, name).weight + alpha * layers[name].dense()
        tiny_model.get_submodule(name).weight.data = weight
    seen = []
    with gate.alpha(alpha):
        found = fisher(
            model,
            names,
            [batch_of(private[start : start + size]) for start in range(0, 2, size)],
            total=2,
            progress=lambda stage, done, total, info: seen.append((stage, done, total)),
        )
    expected = naive(tiny_model, names, private)
    assert found.keys() == expected.keys()
    for name in names:
        # Squares of fp32 gradients that a dozen sums in another order have rounded.
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        assert float(error) < 1e-4, name
    assert seen[-1] == ("fisher", 2, 2)
    assert all(parameter.grad is None for parameter in model.parameters())


def hooks(model) -> dict[str, int]:
    """How many forward hooks every module has."""
    return {name: len(one._forward_hooks) for name, one in model.named_modules()}


def test_only_the_layers_asked_for_and_no_hook_is_left(model, private) -> None:
    name = "model.layers.1.mlp.down_proj"
    before = hooks(model)
    found = fisher(model, [name], [batch_of(private)])
    assert list(found) == [name]
    assert bool(found[name].any())
    assert hooks(model) == before
    assert not model(input_ids=torch.ones(1, 3, dtype=torch.int64)).logits.requires_grad


def test_a_failure_leaves_no_hook_behind(model, private) -> None:
    before = hooks(model)
    with pytest.raises(RuntimeError):
        fisher(
            model, list(linears(model)), [(torch.ones(1, 3), torch.ones(1, 3), torch.ones(1, 3))]
        )
    assert hooks(model) == before


def test_groups_stay_within_their_budget(model, monkeypatch) -> None:
    names = list(linears(model))
    sizes = {name: 4 * linear(model, name).weight.numel() for name in names}
    for budget in (1, max(sizes.values()), sum(sizes.values()) // 2, sum(sizes.values())):
        monkeypatch.setattr(module, "BUDGET_BYTES", budget)
        found = groups(model, names)
        assert [name for group in found for name in group] == names
        for group in found:
            assert len(group) == 1 or sum(sizes[name] for name in group) <= budget
    assert len(found) == 1


@pytest.mark.parametrize("budget", ["uniform", "global"])
@pytest.mark.parametrize("bytes_held", [1, 2**30])
def test_supports_are_the_best_by_contrast(
    model, private, windows, monkeypatch, budget: str, bytes_held: int
) -> None:
    monkeypatch.setattr(module, "BUDGET_BYTES", bytes_held)
    options = tune_options(density=0.01, budget=budget, fisher_windows=4)
    supports = contrast_supports(model, private, windows, options)
    names = list(linears(model))
    assert list(supports) == names
    ones = torch.ones_like(windows[:4])
    inside = fisher(model, names, [batch_of(private)])
    outside = fisher(model, names, [(windows[:4], ones, ones.bool())])
    scores = {name: contrast(inside[name], outside[name]) for name in names}
    sizes = {name: score.numel() for name, score in scores.items()}
    assert sum(layer.nnz for layer in supports.values()) == pytest.approx(
        0.01 * sum(sizes.values()), abs=len(names)
    )
    for name, layer in supports.items():
        assert layer.problems() == []
        assert not bool(layer.values.any())
        if budget == "uniform":
            assert layer.nnz == round(sizes[name] * 0.01)
        mask = torch.zeros(layer.shape, dtype=torch.bool)
        mask[layer.rows(), layer.indices.long()] = True
        assert torch.equal(mask, top_k(scores[name], layer.nnz))


@pytest.mark.parametrize("public_too", [False, True])
def test_layers_that_the_data_does_not_reach_are_all_named(
    model, private, windows, public_too: bool
) -> None:
    def cut(_, args, output):
        return output * 0 if public_too or output.shape[1] != windows.shape[1] else output

    model.model.layers[1].mlp.register_forward_hook(cut)
    with pytest.raises(NumericsError) as caught:
        contrast_supports(model, private, windows, tune_options(fisher_windows=2))
    for part in ("gate_proj", "up_proj", "down_proj"):
        expected = f"the private data has no gradient in model.layers.1.mlp.{part}"
        assert expected in str(caught.value)
    assert "layers.0" not in str(caught.value)


def test_a_contrast_that_is_not_finite_is_named(model, private, windows) -> None:
    def cut(_, args, output):
        return output * 0 if output.shape[1] == windows.shape[1] else output

    model.model.layers[1].mlp.register_forward_hook(cut)
    with pytest.raises(NumericsError, match=r"overflows in model\.layers\.1\.mlp\.gate_proj"):
        contrast_supports(model, private, windows, tune_options(fisher_windows=2))
