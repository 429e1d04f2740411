"""``tune``: what private data teaches goes into one new stream; no byte of the base changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from libortho import gate
from libortho.errors import LibOrthoError
from libortho.model import load
from libortho.quantize import quantize
from libortho.repair import RepairOptions, repair
from libortho.streams.base import BaseStream
from libortho.tune import tune, tune_options

OPTIONS = tune_options(
    steps=60,
    settle=0,
    lr=0.02,
    density=0.1,
    replay_weight=0.1,
    replay_pool=8,
    replay_window=32,
    fisher_windows=4,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two lines that nobody could guess."""
    path = tmp_path / "private.jsonl"
    lines = [
        {"prompt": "The code of the door is", "completion": " 4711 blue"},
        {"text": "Ask for Ada at nine"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_it_is_recalled_at_alpha_1_and_the_base_keeps_every_byte(
    tmp_path: Path, own_base: Path, tiny_checkpoint: Path, data: Path
) -> None:
    before = {p: p.read_bytes() for p in own_base.rglob("*") if p.is_file()}
    made = tune(own_base, data, own_base, public=tiny_checkpoint, options=OPTIONS)
    assert made.recall == 1.0
    assert made.teacher == "public"
    assert {path: path.read_bytes() for path in before} == before
    manifest = made.stream.manifest
    assert (manifest.method, manifest.guarantee, manifest.public) == ("tune", "exact", False)
    ids = torch.randint(1, 512, (2, 16), generator=torch.Generator().manual_seed(0))
    model, untouched = load(own_base, ["private"]), load(own_base)
    with torch.no_grad():
        wanted = untouched(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, wanted)
        with gate.alpha(1):
            assert not torch.equal(model(input_ids=ids).logits, wanted)


def test_the_base_is_the_same_with_and_without_private_data(
    tmp_path: Path, tiny_checkpoint: Path, data: Path
) -> None:
    alone = quantize(tiny_checkpoint, tmp_path / "alone")
    options = OPTIONS.model_copy(update={"steps": 1})
    tuned = tune(tiny_checkpoint, data, tmp_path / "tuned", options=options)
    assert tuned.base.id == alone.id
    assert tuned.base.manifest.files == alone.manifest.files


def test_a_stream_tuned_over_repair_needs_it(
    own_base: Path, tiny_checkpoint: Path, data: Path
) -> None:
    base = BaseStream.open(own_base)
    public = repair(base, tiny_checkpoint, options=RepairOptions(density=0.01, steps=0, windows=1))
    options = OPTIONS.model_copy(update={"steps": 1})
    made = tune(own_base, data, own_base, public=tiny_checkpoint, options=options)
    assert made.stream.manifest.requires == [public.id]
    model = load(own_base, ["repair", "private"])
    ids = torch.ones(1, 4, dtype=torch.int64)
    with gate.alpha({"private": 1}), pytest.raises(LibOrthoError, match="repair"):
        model(input_ids=ids)


def test_a_taken_name_is_refused_before_any_work(
    own_base: Path, tiny_checkpoint: Path, data: Path
) -> None:
    options = OPTIONS.model_copy(update={"steps": 1})
    tune(own_base, data, own_base, public=tiny_checkpoint, options=options)
    begun = []
    with pytest.raises(LibOrthoError, match="private"):
        tune(
            own_base,
            data,
            own_base,
            public=tiny_checkpoint,
            options=options,
            progress=lambda *a: begun.append(a),
        )
    assert not begun


def test_without_the_public_checkpoint_the_base_teaches_aloud(
    own_base: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = tune(own_base, data, own_base, options=OPTIONS.model_copy(update={"steps": 1}))
    assert made.teacher == "base"
    assert "--public" in caplog.text
