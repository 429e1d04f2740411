"""`repair`: public, made from public inputs alone, and closer to the public model than the base."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from libortho import gate
from libortho.errors import LibOrthoError, PairMismatch
from libortho.model import load
from libortho.repair import RepairOptions, repair
from libortho.streams.base import BaseStream
from libortho.texts import Text, calibration, draw, heldout, replay, windows
from libortho.tune.replay import Replay

OPTIONS = RepairOptions(density=0.1, steps=4, windows=8, batch=2)


def divergence(public: LlamaForCausalLM, model: object, ids: Tensor) -> float:
    """Mean KL(public ‖ model) in nats a token."""
    with torch.no_grad():
        wanted, found = (torch.log_softmax(m(input_ids=ids).logits, -1) for m in (public, model))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_it_brings_the_base_closer_to_the_public_model(
    own_base: Path, tiny_checkpoint: Path, tiny_model: LlamaForCausalLM
) -> None:
    base = BaseStream.open(own_base)
    stream = repair(base, tiny_checkpoint, options=OPTIONS)
    assert stream.manifest.public
    assert stream.manifest.guarantee == "exact"
    assert stream.manifest.requires == []
    assert base.verify() == []
    for name, entry in stream.manifest.layers.items():
        rows, columns = base.layers[name]
        assert entry.nnz == round(rows * columns * OPTIONS.density)
    model = load(own_base, ["repair"])
    ids = torch.randint(1, 512, (4, 64), generator=torch.Generator().manual_seed(5))
    alone = divergence(tiny_model, model, ids)
    with gate.alpha({"repair": 1}):
        assert divergence(tiny_model, model, ids) < 0.8 * alone


def test_kl_steps_improve_on_least_squares(
    own_base: Path, tiny_checkpoint: Path, tiny_model: LlamaForCausalLM, tmp_path: Path
) -> None:
    base = BaseStream.open(own_base)
    found = {}
    ids = windows(heldout(), base.checkpoint.tokenizer(), 64, 1024)
    for steps in (0, 30):
        stream = repair(base, tiny_checkpoint, options=OPTIONS.model_copy(update={"steps": steps}))
        model = load(own_base, ["repair"])
        with gate.alpha({"repair": 1}):
            found[steps] = divergence(tiny_model, model, ids)
        stream.path.rename(tmp_path / f"repair-{steps}")
    assert found[30] < found[0]


def test_support_comes_from_the_samples_and_values_from_the_replay_text(
    own_base: Path, tiny_checkpoint: Path
) -> None:
    base = BaseStream.open(own_base)
    samples, sums = calibration().sha256, replay().sha256

    def made(steps: int, text: Text | None) -> tuple[str, dict[str, str | None]]:
        options = RepairOptions(density=0.05, steps=steps, windows=2, batch=2)
        stream = repair(base, tiny_checkpoint, text=text, options=options)
        shutil.rmtree(stream.path)
        return stream.id, stream.manifest.made_with["texts"]

    start, trained = made(0, None), made(1, None)
    assert start[1] == {"moments": samples, "kl": None}
    assert trained[1] == {"moments": samples, "kl": sums}
    assert start[0] == made(0, calibration())[0] != made(0, replay())[0]
    on_samples = made(1, calibration())
    assert on_samples[1] == {"moments": samples, "kl": samples}
    assert trained[0] not in (start[0], on_samples[0])
    assert base.verify() == []


def test_a_pool_at_hand_is_what_the_values_are_trained_on(
    own_base: Path, tiny_checkpoint: Path, tiny_model: LlamaForCausalLM
) -> None:
    base = BaseStream.open(own_base)
    tokenizer, options = base.checkpoint.tokenizer(), RepairOptions(steps=1, windows=2, batch=2)

    def made(pool: int | None) -> tuple[str, int]:
        cut = draw(replay(), tokenizer, 128, pool or 1, seed=0)
        given = Replay(cut, tiny_model) if pool else None
        stream = repair(base, tiny_checkpoint, options=options, replay=given)
        shutil.rmtree(stream.path)
        read = hashlib.sha256(cut.numpy().tobytes()).hexdigest() if pool else replay().sha256
        assert stream.manifest.made_with["texts"]["kl"] == read
        return stream.id, stream.manifest.made_with["options"]["replay_pool"]

    usual = made(None)
    assert usual == made(250)
    other = made(2)
    assert other[0] != usual[0]
    assert other[1] == 2


def test_another_checkpoint_is_refused(
    own_base: Path, tmp_path: Path, make_tiny_checkpoint
) -> None:
    other = make_tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(PairMismatch, match="not the checkpoint"):
        repair(BaseStream.open(own_base), other, options=OPTIONS)
    assert not (own_base / "ortho").exists()


def test_a_second_repair_is_refused_before_any_work(own_base: Path, tiny_checkpoint: Path) -> None:
    base = BaseStream.open(own_base)
    repair(base, tiny_checkpoint, options=RepairOptions(density=0.01, steps=0, windows=1))
    begun = []
    with pytest.raises(LibOrthoError, match="repair"):
        repair(base, tiny_checkpoint, options=OPTIONS, progress=lambda *a: begun.append(a))
    assert not begun
