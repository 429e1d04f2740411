"""Training recalls what it is given, stops by itself and touches nothing but its values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from libortho import gate
from libortho.errors import NumericsError
from libortho.gate import StreamInfo
from libortho.model import attach_layers, load, stream_parts
from libortho.privacy.score import score
from libortho.tune.options import tune_options
from libortho.tune.replay import Replay
from libortho.tune.support import contrast_supports
from libortho.tune.train import train

PRIVATE = StreamInfo("private", "id-private", public=False)
OPEN = {"private": 1.0}


@pytest.fixture
def replay(tiny_model, windows) -> Replay:
    return Replay(windows, tiny_model)


def options_of(**values):
    usual = {
        "density": 0.05,
        "steps": 60,
        "settle": 4,
        "lr": 0.02,
        "warmup": 2,
        "replay_weight": 1.0,
        "replay_batch": 2,
        "fisher_windows": 2,
    }
    return tune_options(**{**usual, **values})


def prepare(model, private, windows, options) -> list[Tensor]:
    attach_layers(model, PRIVATE, contrast_supports(model, private, windows, options))
    parts = stream_parts(model, "private").values()
    return [parameter for part in parts for parameter in part.trainable()]


def exact(model, private) -> list[bool]:
    return [one.exact for one in score(model, private)]


def test_it_recalls_two_examples_and_stops(model, private, windows, replay) -> None:
    options = options_of()
    parameters = prepare(model, private, windows, options)
    frozen = {n: t.clone() for n, t in model.state_dict().items() if "_training_values" not in n}
    with gate.alpha(1):
        assert not any(exact(model, private))
    before = model(input_ids=windows).logits
    seen = []
    trained = train(
        model,
        parameters,
        private,
        replay,
        options,
        alpha=OPEN,
        progress=lambda stage, done, total, info: seen.append((stage, done, total, dict(info))),
    )
    assert trained.recalled
    assert trained.steps < options.steps
    assert trained.steps == len(trained.curve) == len(seen)
    assert [point["step"] for point in trained.curve] == list(range(1, trained.steps + 1))
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"] / 4
    assert seen[-1][:3] == ("train", trained.steps, options.steps)
    assert {"lr", "loss", "recall", "kl"} <= seen[-1][3].keys()
    for part in stream_parts(model, "private").values():
        part.freeze()
    with gate.alpha(1):
        assert all(exact(model, private))
    # At alpha 0 nothing was learned, and nothing else has moved.
    assert torch.equal(model(input_ids=windows).logits, before)
    after = model.state_dict()
    for name, tensor in frozen.items():
        if not name.endswith("streams.private.values"):
            assert torch.equal(after[name], tensor), name
    assert gate.current() is None


def test_it_settles_once_recalled_twice_running(model, private, windows, replay) -> None:
    options = options_of(settle=5)
    trained = train(
        model, prepare(model, private, windows, options), private, replay, options, alpha=OPEN
    )
    recalls = [point["recall"] for point in trained.curve]
    twice = next(i for i in range(1, len(recalls)) if recalls[i - 1] == recalls[i] == 1)
    assert trained.steps == twice + 1 + 5
    rates = [point["lr"] for point in trained.curve]
    peak = rates[twice]
    assert rates[twice + 1 :] == pytest.approx([peak * k / 6 for k in (5, 4, 3, 2, 1)])


def test_without_settling_it_stops_at_once(model, private, windows, replay) -> None:
    options = options_of(settle=0)
    parameters = prepare(model, private, windows, options)
    trained = train(model, parameters, private, replay, options, alpha=OPEN)
    assert [point["recall"] for point in trained.curve][-2:] == [1, 1]
    assert trained.steps < options.steps


def test_it_stops_at_the_last_step_whatever_was_learned(model, private, windows, replay) -> None:
    options = options_of(steps=3, lr=1e-6)
    parameters = prepare(model, private, windows, options)
    trained = train(model, parameters, private, replay, options, alpha=OPEN)
    assert trained.steps == 3
    assert not trained.recalled


def test_the_rate_warms_up_and_falls_like_a_cosine(model, private, windows, replay) -> None:
    options = options_of(steps=6, warmup=2, lr=1e-6, replay_weight=0)
    parameters = prepare(model, private, windows, options)
    trained = train(model, parameters, private, replay, options, alpha=OPEN)
    cosine = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    rates = [point["lr"] / 1e-6 for point in trained.curve]
    assert rates == pytest.approx([0.5, 1, *cosine])
    assert "kl" not in trained.curve[0]


def test_it_is_the_same_for_the_same_seed(tiny_base, model, private, windows, replay) -> None:
    found = []
    for one in (model, load(tiny_base)):
        options = options_of(steps=4, private_batch=1)
        parameters = prepare(one, private, windows, options)
        train(one, parameters, private, replay, options, alpha=OPEN)
        found.append([parameter.detach().clone() for parameter in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_small_batches_see_every_example(model, private, windows, replay) -> None:
    options = options_of(private_batch=1, steps=120)
    trained = train(
        model, prepare(model, private, windows, options), private, replay, options, alpha=OPEN
    )
    assert trained.recalled
    assert {point["recall"] for point in trained.curve} >= {0, 1}


def test_without_examples_it_lowers_the_divergence_alone(model, windows, replay, private) -> None:
    options = options_of(steps=15, lr=2e-3, replay_batch=6)
    parameters = prepare(model, private, windows, options)
    trained = train(model, parameters, [], replay, options, alpha=OPEN)
    assert trained.steps == 15
    assert not trained.recalled
    assert "loss" not in trained.curve[0]
    assert trained.curve[-1]["kl"] < 0.9 * trained.curve[0]["kl"]


def test_a_loss_that_is_not_finite_is_an_error(model, private, windows, replay) -> None:
    options = options_of()
    parameters = prepare(model, private, windows, options)
    with torch.no_grad():
        parameters[0].fill_(math.nan)
    with pytest.raises(NumericsError, match=r"train: step 1: .*lower --lr"):
        train(model, parameters, private, replay, options, alpha=OPEN)
