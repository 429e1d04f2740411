"""A block that is recomputed in the backward pass sees the alpha of its forward."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from libortho import gate
from libortho.errors import AlphaError
from libortho.model import linears

ALPHA = [0, 1, 0.5, 1]


def trained_parameters(model) -> list[torch.nn.Parameter]:
    found = []
    for module in linears(model).values():
        found += module.part("private").trainable()
    return found


def enable(model, reentrant: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()


def loss_of(model, ids) -> Tensor:
    with gate.alpha(ALPHA):
        logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gradients(parameters, loss: Tensor, thread: bool) -> list[Tensor]:
    for parameter in parameters:
        parameter.grad = None
    failed: list[BaseException] = []

    def run() -> None:
        try:
            loss.backward()
        except BaseException as error:
            failed.append(error)

    if thread:
        worker = threading.Thread(target=run)
        worker.start()
        worker.join()
    else:
        run()
    if failed:
        raise failed[0]
    return [parameter.grad.clone() for parameter in parameters]


@pytest.mark.parametrize("kind", ["csr", "lowrank"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("thread", [False, True], ids=["here", "in a thread"])
def test_gradients_equal_those_without_checkpointing(
    model, ids, attach_random, kind: str, reentrant: bool, thread: bool
) -> None:
    attach_random(model, kind=kind)
    parameters = trained_parameters(model)
    model.train()
    plain = gradients(parameters, loss_of(model, ids), thread=False)
    enable(model, reentrant)
    calls = []
    handle = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = loss_of(model, ids)
    # Whatever is open while the gradients are computed is of no concern.
    with gate.alpha(0.25):
        recomputed = gradients(parameters, loss, thread)
    handle.remove()
    assert len(calls) == 2, "nothing was recomputed"
    assert gate.current() is None
    for one, other in zip(recomputed, plain, strict=True):
        assert torch.equal(one, other)
    assert all(bool(gradient.any()) for gradient in plain)


def test_checkpointing_that_is_switched_on_again_still_carries_alpha(
    model, ids, attach_random
) -> None:
    attach_random(model)
    parameters = trained_parameters(model)
    for reentrant in (True, False, True):
        enable(model, reentrant)
        gradients(parameters, loss_of(model, ids), thread=False)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_block_checkpointed_by_hand_is_refused(
    model, ids, attach_random, reentrant: bool
) -> None:
    """Whoever recomputes outside the known path learns of it; the gradient is never wrong."""
    attach_random(model)
    parameters = trained_parameters(model)
    block = model.model.layers[0]
    forward = block.forward

    def by_hand(hidden, **options):
        return checkpoint(lambda x: forward(x, **options), hidden, use_reentrant=reentrant)

    block.forward = by_hand
    model.enable_input_require_grads()
    loss = loss_of(model, ids)
    with pytest.raises(AlphaError, match="recomputed in the backward pass"):
        gradients(parameters, loss, thread=False)
    loss = loss_of(model, ids)
    with gate.alpha(ALPHA), pytest.raises(AlphaError, match="recomputed in the backward pass"):
        gradients(parameters, loss, thread=False)


def test_the_backbone_alone_carries_its_alpha(model, ids, attach_random) -> None:
    attach_random(model)
    parameters = trained_parameters(model)
    model.train()

    def loss() -> Tensor:
        with gate.alpha(ALPHA):
            return model.model(input_ids=ids, use_cache=False).last_hidden_state.square().sum()

    plain = gradients(parameters, loss(), thread=False)
    enable(model, reentrant=False)
    recomputed = gradients(parameters, loss(), thread=False)
    for one, other in zip(recomputed, plain, strict=True):
        assert torch.equal(one, other)
    assert all(bool(gradient.any()) for gradient in plain)
