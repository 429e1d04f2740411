"""Native calls are counted in the native function, expected ones at the model."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from libortho import gate, ops
from libortho.linear import OrthoLinear
from libortho.model import call_region, linear, linears
from libortho.privacy.encode import Encoded
from libortho.privacy.score import score

EXAMPLES = [Encoded((0, 5, 6, 7, 8, 9), 2), Encoded((0, 11, 12, 13), 1), Encoded((0, 3, 4), 1)]


@pytest.fixture
def native(model) -> None:
    found = ops.backend()
    if found.name != "native":
        pytest.skip(f"the native backend does not run here: {found.reason}")


def generate(model, ids, tokens: int = 4) -> None:
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        eos_token_id=-1,
        pad_token_id=0,
    )


def work(model, ids) -> None:
    with gate.alpha([0, 1, 0, 1]):
        generate(model, ids)
    with gate.alpha(1):
        score(model, EXAMPLES, batch_size=2)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("kind", ["csr", "lowrank"])
def test_every_linear_calls_the_native_function_once_a_forward(
    model, ids, attach_random, kind: str
) -> None:
    attach_random(model, kind=kind)
    with call_region(model, "work") as region:
        work(model, ids)
    assert region.name == "work"
    assert region.forwards == 4 + 2
    assert region.expected_op_calls == 6 * len(linears(model)) == 84
    assert region.native_op_calls == region.expected_op_calls
    with call_region(model, "nothing") as region:
        pass
    assert (region.native_op_calls, region.expected_op_calls, region.forwards) == (0, 0, 0)


@pytest.mark.usefixtures("native")
def test_a_linear_that_is_bypassed_is_missed(model, ids, attach_random, monkeypatch) -> None:
    attach_random(model)
    bypassed = linear(model, "model.layers.1.mlp.up_proj")
    forward = OrthoLinear.forward

    def bypass(self, x):
        return functional.linear(x, self.weight) if self is bypassed else forward(self, x)

    monkeypatch.setattr(OrthoLinear, "forward", bypass)
    with call_region(model, "bypassed") as region:
        work(model, ids)
    assert region.expected_op_calls == 84
    assert region.native_op_calls == 84 - 6


@pytest.mark.usefixtures("native")
def test_a_call_too_many_is_noticed_as_well(model, ids) -> None:
    with call_region(model, "more") as region:
        generate(model, ids, 1)
        linear(model, "model.layers.0.mlp.up_proj")(torch.randn(2, 128))
    assert region.native_op_calls == region.expected_op_calls + 1


@pytest.mark.usefixtures("native")
def test_the_dense_route_is_counted_within(model, attach_random) -> None:
    attach_random(model)
    long = torch.randint(512, (16, 100), generator=torch.Generator().manual_seed(0))
    with call_region(model, "long") as region, gate.alpha(1):
        model(input_ids=long)
    assert region.native_op_calls == region.expected_op_calls == len(linears(model))
    assert 0 <= region.dense_route_calls <= region.native_op_calls


def test_forwards_are_counted_at_the_model_without_gradients(model, ids) -> None:
    with call_region(model, "two") as region:
        found = model(input_ids=ids).logits
        model(ids)
        assert not torch.is_grad_enabled()
    assert region.forwards == 2
    assert not found.requires_grad
    assert torch.is_grad_enabled()


def test_a_forward_that_is_refused_is_not_expected(model, ids) -> None:
    with (
        call_region(model, "refused") as region,
        pytest.raises(gate.AlphaError),
        gate.alpha([0, 0]),
    ):
        model(input_ids=ids[:3])
    assert (region.forwards, region.expected_op_calls) == (0, 0)
