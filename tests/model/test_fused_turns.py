"""Parts of a fused linear take turns at one product: what is handed out, and to whom."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from libortho import gate
from libortho.fuse import FusedPart, fuse_projections


class Attention(nn.Module):
    """Three projections of one input, and something that happens after the first."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        for leaf in ("q_proj", "k_proj", "v_proj"):
            self.add_module(leaf, source.get_submodule(leaf))

    def forward(self, x: Tensor, between: Callable[[], None] = lambda: None) -> list[Tensor]:
        q = self.q_proj(x)
        between()
        return [q, self.k_proj(x), self.v_proj(x)]


def assert_nothing_kept(model: nn.Module) -> None:
    parts = [module for module in model.modules() if isinstance(module, FusedPart)]
    assert parts
    assert all(part._shared.kept is None for part in parts)


@pytest.fixture
def attentions(model, attach_random) -> tuple[Attention, Attention]:
    """The projections of one block, under a stream, apart and fused."""
    attach_random(model)
    plain = Attention(model.model.layers[0].self_attn)
    fused = copy.deepcopy(plain)
    fuse_projections(fused)
    return plain, fused


def state(alpha: float) -> gate.Captured:
    return gate.Captured(("private",), torch.tensor([[float(alpha)]]), ((("id-private", alpha),),))


def x_of(seed: int = 0) -> Tensor:
    return torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(seed))


def run(attention: Attention, alpha: float, x: Tensor, *between: Any) -> list[Tensor]:
    with torch.no_grad(), gate.captured(state(alpha)):
        return attention(x, *between)


def test_a_result_made_under_one_alpha_is_not_handed_out_under_another(attentions) -> None:
    plain, fused = attentions
    x = x_of()

    def switch() -> None:
        gate.enter(state(1))

    opened, shut = run(plain, 1, x), run(plain, 0, x)
    assert not torch.equal(opened[1], shut[1])
    before = gate._captured.get()
    found = run(fused, 0, x, switch)
    assert gate._captured.get() is before
    assert all(map(torch.allclose, found, [shut[0], opened[1], opened[2]]))


def test_alpha_that_changes_outside_a_forward_is_seen(attentions) -> None:
    plain, fused = attentions
    with torch.no_grad():
        wanted = plain.k_proj(x_of())
        with gate.alpha(1):
            found = fused(x_of(), lambda: gate._ambient.set(0.0))[1]
    assert torch.allclose(found, wanted)


def test_nothing_crosses_threads(attentions) -> None:
    """Neither with the alpha of another thread, nor what another made under the same state."""
    plain, fused = attentions
    x, shared = x_of(), state(1)
    for states in ([state(0), state(1)], [shared, shared]):
        found: dict[int, list[Tensor]] = {}
        begun, both, done = (threading.Event() for _ in range(3))

        def outer(states=states, found=found, begun=begun, both=both, done=done) -> None:
            def between() -> None:
                begun.set()
                assert both.wait(10)

            with torch.no_grad(), gate.captured(states[0]):
                found[0] = fused(x, between)
            done.set()

        def inner(states=states, found=found, begun=begun, both=both, done=done) -> None:
            def between() -> None:  # the other goes on now, and finds what this one left
                both.set()
                assert done.wait(10)

            assert begun.wait(10)
            with torch.no_grad(), gate.captured(states[1]):
                found[1] = fused(x, between)

        workers = [threading.Thread(target=work) for work in (outer, inner)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for place in (0, 1):
            expected = run(plain, float(states[place].alpha), x)
            assert all(map(torch.allclose, found[place], expected))
        memories = [{y.untyped_storage().data_ptr() for y in found[place]} for place in (0, 1)]
        assert not memories[0] & memories[1]


def test_each_part_gets_its_own_input(attentions) -> None:
    """As in cross-attention: the first reads another input than the others."""
    plain, _ = attentions
    asked = [x_of(seed) for seed in (0, 1, 1)]

    class Crossed(Attention):
        def forward(self, x: Tensor) -> list[Tensor]:
            del x
            return [self.q_proj(asked[0]), self.k_proj(asked[1]), self.v_proj(asked[2])]

    crossed = Crossed(plain)
    expected = [run(plain, 1, x)[place] for place, x in enumerate(asked)]
    fuse_projections(crossed)
    assert all(map(torch.allclose, run(crossed, 1, asked[0]), expected))


def test_an_input_that_was_changed_in_place_is_computed_again(attentions) -> None:
    plain, fused = attentions
    x, y = x_of(), x_of()
    found = run(fused, 1, x, lambda: x.mul_(2))
    assert all(map(torch.allclose, found, run(plain, 1, y, lambda: y.mul_(2))))


def test_a_part_that_is_asked_twice_is_computed_twice(attentions) -> None:
    """What was handed out is the caller's, who may have written over it."""
    plain, _ = attentions
    x = x_of()

    class Twice(Attention):
        def forward(self, x: Tensor) -> Tensor:
            self.q_proj(x).zero_()
            return self.q_proj(x)

    twice = Twice(plain)
    fuse_projections(twice)
    assert torch.allclose(run(twice, 1, x), run(plain, 1, x)[0])


def test_nothing_outlives_the_forward_even_one_that_fails(attentions) -> None:
    _, fused = attentions
    x = x_of()
    alive = weakref.ref(x)

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(fused, 1, x, fail)
    assert_nothing_kept(fused)
    run(fused, 1, x)
    assert_nothing_kept(fused)
    del x
    gc.collect()
    assert alive() is None


def test_gradients_reach_the_input(attentions) -> None:
    plain, fused = attentions
    slopes = []
    for attention in (plain, fused):
        x = x_of().requires_grad_()
        with gate.captured(state(1)):
            sum(y.square().sum() for y in attention(x)).backward()
        slopes.append(x.grad)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-4)


def test_a_result_without_gradients_is_not_handed_out_where_they_are_wanted(attentions) -> None:
    _, fused = attentions
    x = x_of().requires_grad_()
    with gate.captured(state(1)), torch.no_grad():
        _, k, _ = fused(x, lambda: torch.set_grad_enabled(True))
    assert k.requires_grad
