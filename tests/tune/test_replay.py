"""Replay: the teacher is asked once per window, and its answers are what it said."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from libortho.tune import replay as module
from libortho.tune.replay import Replay, draws


class Counting:
    """A teacher that counts the windows it is asked about."""

    def __init__(self, model) -> None:
        self.model = model
        self.asked: list[int] = []

    def parameters(self):
        return self.model.parameters()

    def __call__(self, input_ids):
        self.asked.append(len(input_ids))
        return self.model(input_ids=input_ids)


@pytest.fixture
def teacher(tiny_model) -> Counting:
    return Counting(tiny_model)


def stated(teacher: Counting, windows):
    """What the teacher says, kept in fp16 and normalised again."""
    with torch.no_grad():
        kept = torch.log_softmax(teacher.model(input_ids=windows).logits.float(), -1).half()
    return torch.log_softmax(kept.float(), -1)


def test_the_cache_equals_recomputation(teacher, windows) -> None:
    replay = Replay(windows, teacher)
    chosen = torch.tensor([4, 0, 2])
    first = replay.log_probs(chosen)
    again = replay.log_probs(chosen)
    assert teacher.asked == [3]
    assert torch.equal(first, again)
    assert torch.equal(first, stated(teacher, windows[chosen]))
    assert torch.equal(replay.log_probs(chosen.flip(0)), first.flip(0))
    torch.testing.assert_close(first.exp().sum(-1), torch.ones(3, 16))


def test_a_mixture_of_known_and_new_keeps_the_order(teacher, windows) -> None:
    replay = Replay(windows, teacher)
    replay.log_probs(torch.tensor([1, 3]))
    found = replay.log_probs(torch.tensor([3, 0, 1]))
    assert teacher.asked == [2, 1]
    for row, index in enumerate([3, 0, 1]):
        # The window was alone or beside others: rounding of the product, then of fp16.
        expected = stated(teacher, windows[index : index + 1])[0]
        torch.testing.assert_close(found[row], expected, rtol=0, atol=2e-2)


def test_filling_asks_about_every_window_once(teacher, windows) -> None:
    replay = Replay(windows, teacher)
    seen = []
    replay.fill(4, lambda stage, done, total, info: seen.append((stage, done, total)))
    assert teacher.asked == [4, 2]
    assert seen == [("teacher", 4, 6), ("teacher", 6, 6)]
    replay.log_probs(torch.arange(6))
    assert teacher.asked == [4, 2]


def test_what_does_not_fit_is_asked_again_and_is_the_same(teacher, windows, monkeypatch) -> None:
    whole = Replay(windows, teacher).log_probs(torch.arange(6))
    one = 16 * 512 * 2
    for room in (0, one, 3 * one + 1):
        monkeypatch.setattr(module, "CACHE_BYTES", room)
        teacher.asked.clear()
        replay = Replay(windows, teacher)
        assert torch.equal(replay.log_probs(torch.arange(6)), whole)
        replay.log_probs(torch.arange(6))
        assert teacher.asked == [6, 6 - room // one]


def test_the_divergence_is_the_mean_over_tokens(teacher, tiny_model, windows) -> None:
    replay = Replay(windows, teacher)
    student = copy.deepcopy(tiny_model)
    with torch.no_grad():
        student.lm_head.weight.mul_(0.8)
    chosen = torch.tensor([0, 5])
    kl = replay.kl(student, chosen)
    p = stated(teacher, windows[chosen]).double()
    q = torch.log_softmax(student(input_ids=windows[chosen]).logits.double(), -1)
    expected = (p.exp() * (p - q)).sum(-1).mean()
    assert kl.item() == pytest.approx(expected.item(), rel=1e-4)
    assert kl.item() > 0.01
    assert kl.requires_grad
    assert replay.kl(tiny_model, chosen).item() < 1e-5


def test_draws_use_the_pool_up_before_they_repeat() -> None:
    found = torch.cat(list(itertools.islice(draws(5, 2, seed=0), 10)))
    for start in range(0, 20, 5):
        assert sorted(found[start : start + 5].tolist()) == [0, 1, 2, 3, 4]
    again = torch.cat(list(itertools.islice(draws(5, 2, seed=0), 10)))
    assert torch.equal(found, again)
    other = torch.cat(list(itertools.islice(draws(5, 2, seed=1), 10)))
    assert not torch.equal(found, other)
    assert len(next(draws(2, 7, seed=0))) == 7
