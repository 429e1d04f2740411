"""`delta` of a full fine-tune: every tensor moved, the base unchanged, the tuned model at α = 1."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from libortho import gate
from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError
from libortho.model import load
from libortho.privacy.score import score
from libortho.split import OPTIONS, split
from libortho.streams.base import BaseStream


@pytest.fixture
def tuned(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """Every tensor moved by a tenth of its size."""
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tuned"))
    tensors = load_file(copy / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        tensor += (
            0.1
            * tensor.std().nan_to_num(1.0).clamp(min=0.1)
            * torch.randn(tensor.shape, generator=generator)
        )
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_everything_stored_gives_the_tuned_model_back(tmp_path, tiny_base, tuned, text) -> None:
    options = OPTIONS.model_copy(update={"density": 1.0, "replay_pool": 8})
    made = split(tiny_base, tmp_path / "out", tuned=tuned, text=text, options=options)
    public = BaseStream.open(tiny_base)
    assert made.base.id == public.id
    assert made.base.verify() == []
    assert made.stream.verify() == []
    kinds = {name: entry.kind for name, entry in made.stream.manifest.layers.items()}
    assert {name for name, kind in kinds.items() if kind == "csr"} == set(public.layers)
    others = {name for name, kind in kinds.items() if kind == "dense"}
    assert others == set(public.other_names())
    ids = torch.randint(1, 512, (2, 16), generator=torch.Generator().manual_seed(0))
    model = load(made.base.path, ["private"])
    plain = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = plain(input_ids=ids).logits
        closed = model(input_ids=ids).logits
        with gate.alpha(1):
            opened = model(input_ids=ids).logits
        untouched = load(tiny_base)(input_ids=ids).logits
    assert torch.equal(closed, untouched)
    # fp16 keeps eleven bits of every difference.
    assert float((opened - wanted).abs().max()) < 0.02 * float((closed - wanted).abs().max())


@pytest.mark.parametrize("support", ["impact", "pursuit", "admm"])
def test_supports_chosen_on_the_difference(tmp_path, tiny_base, tuned, text, support: str) -> None:
    options = OPTIONS.model_copy(update={"density": 0.2, "replay_pool": 8, "support": support})
    made = split(tiny_base, tmp_path / "out", tuned=tuned, text=text, options=options)
    public, checkpoint = BaseStream.open(tiny_base), Checkpoint(tuned)
    name = "model.layers.0.mlp.gate_proj"
    target = checkpoint.tensor(f"{name}.weight") - public.weight(name)
    layer = made.stream.layer(name)
    assert layer.nnz == round(0.2 * target.numel())
    assert float((target - layer.dense()).norm()) < 0.9 * float(target.norm())


def test_contrast_needs_the_data(tmp_path, tiny_base, tuned) -> None:
    options = OPTIONS.model_copy(update={"support": "contrast"})
    with pytest.raises(ConfigError, match="--data"):
        split(tiny_base, tmp_path / "out", tuned=tuned, options=options)
    assert not (tmp_path / "out").exists()


def test_a_full_fine_tune_is_recalled_over_an_unchanged_base(
    tmp_path, tiny_base, mixed, data, text, rows
) -> None:
    """Every tensor was trained; what the public base lacks of it comes back at alpha 1 alone."""
    options = OPTIONS.model_copy(
        update={
            "density": 0.1,
            "steps": 40,
            "replay_pool": 16,
            "replay_window": 32,
            "fisher_windows": 8,
            "settle": 2,
        }
    )
    made = split(tiny_base, tmp_path / "out", tuned=mixed, data=data, text=text, options=options)
    assert made.recall == 1.0
    assert made.stream.manifest.guarantee == "exact"
    assert made.base.id == BaseStream.open(tiny_base).id
    kinds = {entry.kind for entry in made.stream.manifest.layers.values()}
    assert kinds == {"csr", "dense"}
    model = load(made.base.path, ["private"])
    assert not any(one.exact for one in score(model, rows))
    with gate.alpha(1):
        assert all(one.exact for one in score(model, rows))
