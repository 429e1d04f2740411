"""`forget` on a tiny model that has learned a few rows by heart."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from libortho.errors import ConfigError, PairMismatch
from libortho.model import load
from libortho.privacy.encode import encode
from libortho.privacy.private_set import read_jsonl, write_jsonl
from libortho.privacy.resample import neighbours
from libortho.privacy.score import score
from libortho.quantize import quantize
from libortho.split import ForgetOptions, Request, split
from libortho.split.forget import split_forget
from libortho.split.forgetting import Neighbours
from libortho.streams.base import BaseStream
from libortho.texts import Text

FAST = {
    "rounding": "mse",
    "steps": 25,
    "lr": 0.3,
    "warmup": 2,
    "density": 0.1,
    "neighbours": 24,
    "neighbour_batch": 8,
    "replay_pool": 16,
    "replay_window": 32,
    "fisher_windows": 8,
}


def forgotten(tmp_path: Path, mixed: Path, data: Path, text: Text, **options):
    chosen = ForgetOptions(**{**FAST, **options})
    return split(mixed, tmp_path / "out", method="forget", data=data, text=text, options=chosen)


@pytest.mark.parametrize("rule", ["codes", "mask", "ssd"])
def test_alpha_1_is_the_old_base_and_alpha_0_has_forgotten(
    tmp_path: Path, mixed: Path, data: Path, text: Text, rows, rule: str
) -> None:
    made = forgotten(tmp_path, mixed, data, text, rule=rule)
    manifest = made.stream.manifest
    assert manifest.guarantee == "measured"
    assert manifest.made_with["options"]["rule"] == rule
    assert made.recall == 1.0
    assert 0 < manifest.density <= 0.1 + 1e-3
    old = quantize(mixed, tmp_path / "old", method="mse")
    assert made.base.verify() == []
    for name in old.layers:
        assert torch.equal(made.base.scales(name), old.scales(name))
        restored = made.base.weight(name) + made.stream.layer(name).dense()
        if rule == "codes":
            assert torch.equal(restored, old.weight(name))
        else:
            steps = old.scales(name).float().repeat_interleave(old.group_size, 1)
            assert torch.equal((restored / steps).round(), old.codes(name).float())
    restores = manifest.made_with["restores"]
    assert restores == ("bit for bit" if rule == "codes" else "to the rounding of fp16")
    with torch.no_grad():
        closed = [one.nll / one.tokens for one in score(load(made.base.path), rows)]
        known = [one.nll / one.tokens for one in score(load(old.path), rows)]
    # Dampening is not trained: on a model of this size it goes in the right direction, no more.
    assert sum(closed) > (1.01 if rule == "ssd" else 20) * sum(known)
    if rule != "ssd":
        assert made.recall_closed < 0.5


def test_neighbours_keep_what_the_template_says(
    tmp_path: Path, mixed: Path, data: Path, text: Text, tiny_tokenizer
) -> None:
    """Rows of the template that no training has seen are moved less where neighbours are held."""
    named = read_jsonl(data).examples
    unseen = encode(tiny_tokenizer, neighbours(named, 16, seed=99, public=text.documents))
    plain = AutoModelForCausalLM.from_pretrained(mixed, dtype=torch.float32).eval()
    judge = Neighbours(unseen, plain)
    moved = {}
    for weight in (0.0, 10.0):
        held = {"neighbour_weight": weight, "steps": 40}  # held, rows move more slowly
        made = forgotten(tmp_path / str(weight), mixed, data, text, **held)
        with torch.no_grad():
            moved[weight] = float(judge.kl(load(made.base.path), torch.arange(len(unseen))))
        assert ("neighbour_kl" in made.curve[0]) == bool(weight)
        assert made.curve[-1]["hinge"] < made.curve[0]["hinge"] / 4
    assert moved[10.0] < moved[0.0] / 2


def test_rows_follow_where_neighbours_drift(
    tmp_path: Path, mixed: Path, data: Path, text: Text, monkeypatch
) -> None:
    reached = {}
    for drift in (0.0, -2.0):
        monkeypatch.setattr(Neighbours, "drift", lambda *_, drift=drift: drift)
        made = forgotten(tmp_path / str(drift), mixed, data, text, steps=60)
        assert made.curve[-1]["drift"] == pytest.approx(drift, abs=0.01)
        reached[drift] = made.curve[-1]["nll"]
    assert reached[-2.0] < 0.6 * reached[0.0]


def test_drift_is_the_mean_logarithm_of_what_neighbours_cost_now(
    mixed: Path, data: Path, text: Text, tiny_tokenizer
) -> None:
    named = read_jsonl(data).examples
    unseen = encode(tiny_tokenizer, neighbours(named, 16, seed=99, public=text.documents))
    plain = AutoModelForCausalLM.from_pretrained(mixed, dtype=torch.float32).eval()
    levels = torch.tensor([one.nll / one.tokens for one in score(plain, unseen)])
    judge, some = Neighbours(unseen, plain), torch.tensor([3, 0, 7])
    assert judge.drift(plain, some, levels) == pytest.approx(0, abs=1e-5)
    levels[some] *= torch.tensor([2.0, 1.0, 4.0])
    assert judge.drift(plain, some, levels) == pytest.approx(-math.log(2), abs=1e-5)


def test_a_file_of_neighbours_is_named_by_its_sha256(
    tmp_path: Path, mixed: Path, data: Path, text: Text
) -> None:
    file = tmp_path / "mine.jsonl"
    digest = write_jsonl(file, [{"prompt": "The code of Orla Venn is", "completion": " 11111"}])
    made = forgotten(tmp_path, mixed, data, text, neighbour_file=file, steps=1, neighbour_batch=1)
    with_ = made.stream.manifest.made_with
    assert with_["neighbours_sha256"] == digest
    assert str(tmp_path) not in made.stream.manifest.model_dump_json()


def test_a_rounding_at_hand_is_not_made_again(
    tmp_path: Path, mixed: Path, data: Path, text: Text
) -> None:
    rounded = quantize(mixed, tmp_path / "rounded", method="mse")
    options = ForgetOptions(**{**FAST, "steps": 2})
    request = Request(mixed, tmp_path / "given", data=data, text=text)
    given = split_forget(request, options, rounded)
    alone = split_forget(replace(request, out=tmp_path / "alone"), options)
    assert (given.base.id, given.stream.id) == (alone.base.id, alone.stream.id)


def test_a_rounding_of_another_kind_is_refused(
    tmp_path: Path, mixed: Path, data: Path, text: Text, tiny_base: Path
) -> None:
    request = Request(mixed, tmp_path / "out", data=data, text=text)
    with pytest.raises(PairMismatch) as refused:
        split_forget(request, ForgetOptions(**FAST), BaseStream.open(tiny_base))
    assert "checkpoint " in str(refused.value)
    rounded = quantize(mixed, tmp_path / "rounded", method="mse", bits=3)
    with pytest.raises(PairMismatch, match=r"is no rounding of .*: bits 3, expected 4"):
        split_forget(request, ForgetOptions(**FAST), rounded)
    assert not (tmp_path / "out").exists()


def test_it_needs_the_data(tmp_path: Path, mixed: Path) -> None:
    with pytest.raises(ConfigError, match="--data FILE"):
        split(mixed, tmp_path / "out", method="forget")
    assert not (tmp_path / "out").exists()
