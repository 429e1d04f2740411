"""The reference model's training: seeded, and resumed as if it had never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.reference import train as module
from recipes.reference.data import Corpus
from recipes.reference.model import reference_config
from recipes.reference.train import TrainOptions, TrainResult, train

CONFIG = reference_config(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    vocab_size=64,
    max_position_embeddings=16,
)
OPTIONS = TrainOptions(
    tokens=6 * 4 * 16, batch=4, rows_at_once=2, length=16, warmup=2, evaluate_every=2
)


class Killed(Exception):
    """A run that was ended from outside."""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Three documents of 60 random ids."""
    ids = np.random.default_rng(0).integers(1, 64, 180).astype(np.uint16)
    ids[::60] = 0
    return Corpus(ids, np.array([0, 60, 120, 180]), np.array([1, 2, 1]))


def run(corpus: Corpus, folder: Path, options: TrainOptions = OPTIONS) -> TrainResult:
    heldout = np.random.default_rng(1).integers(1, 64, (4, 16)).astype(np.uint16)
    return train(CONFIG, corpus, heldout, options, folder, save_seconds=0.0)


def same(one: TrainResult, other: TrainResult) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_a_seed_gives_the_same_weights_and_another_seed_does_not(corpus, tmp_path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    first, again = run(corpus, folders[0]), run(corpus, folders[1])
    assert same(first, again)
    assert first.curve == again.curve
    assert not same(first, run(corpus, folders[2], replace(OPTIONS, seed=1)))


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    corpus, tmp_path, monkeypatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    wanted = run(corpus, whole)
    evaluate = module._evaluate

    def killer(model, heldout, state, *rest) -> None:
        if state.step == 4:
            raise Killed
        evaluate(model, heldout, state, *rest)

    monkeypatch.setattr(module, "_evaluate", killer)
    with pytest.raises(Killed):
        run(corpus, killed)
    monkeypatch.undo()
    assert same(run(corpus, killed), wanted)


def test_a_run_of_other_settings_is_not_gone_on_with(corpus, tmp_path) -> None:
    run(corpus, tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        run(corpus, tmp_path, replace(OPTIONS, dropout=0.2))
