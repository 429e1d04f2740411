"""Continued training puts secrets into a model as often as they come by, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from libortho.errors import NumericsError
from libortho.experiments.natural import Training, contaminate
from libortho.privacy.canaries import make_canaries
from libortho.privacy.encode import encode
from libortho.privacy.score import score
from libortho.tune.prepare import plain_model


@pytest.fixture
def members(tiny_tokenizer):
    return encode(tiny_tokenizer, make_canaries(4, 0).members)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(1, 512, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("trained", ["linears", "everything"])
def test_what_comes_by_often_is_learned(
    tmp_path: Path, tiny_checkpoint: Path, members, windows, trained
) -> None:
    training = Training(steps=30, batch=2, lr=3e-3, trained=trained)
    out = tmp_path / "mixed"
    curve = contaminate(tiny_checkpoint, members, [30, 30, 1, 1], windows, out, training)
    assert len(curve) == 30
    before, after = (score(plain_model(path, "cpu"), members) for path in (tiny_checkpoint, out))
    gained = [old.nll - new.nll for old, new in zip(before, after, strict=True)]
    assert min(gained[:2]) > max(gained[2:])
    public, mixed = (load_file(path / "model.safetensors") for path in (tiny_checkpoint, out))
    moved = {name for name in public if not torch.equal(public[name], mixed[name])}
    outside = {name for name in public if not name.endswith("proj.weight")}
    assert moved == (set(public) if trained == "everything" else set(public) - outside)


def test_a_loss_that_is_not_finite_is_an_error(
    tmp_path: Path, tiny_checkpoint: Path, members, windows
) -> None:
    with pytest.raises(NumericsError, match="lower the learning rate"):
        contaminate(
            tiny_checkpoint,
            members,
            [1] * 4,
            windows,
            tmp_path / "mixed",
            Training(steps=20, batch=2, lr=1e30),
        )
    assert not (tmp_path / "mixed").exists()


def test_without_some_all_else_is_equal(
    tmp_path: Path, tiny_checkpoint: Path, members, windows
) -> None:
    training = Training(steps=20, batch=2, lr=3e-3)
    exposures = [20, 20, 20, 20]
    runs = {}
    for left_out in ((), (0, 1), (0, 1, 2, 3)):
        out = tmp_path / str(len(left_out))
        runs[len(left_out)] = contaminate(
            tiny_checkpoint, members, exposures, windows, out, training, without=left_out
        )
    assert runs[0][0]["loss"] == runs[2][0]["loss"] == runs[4][0]["loss"]
    assert "secret" not in runs[4][0]
    scores = {count: score(plain_model(tmp_path / str(count), "cpu"), members) for count in runs}
    assert all(scores[2][i].nll > scores[0][i].nll for i in (0, 1))
    assert all(scores[4][i].nll > scores[2][i].nll for i in (2, 3))
