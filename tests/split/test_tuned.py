"""A tuned checkpoint may differ where a gate can act; everything else is refused, all at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from libortho.errors import CheckpointError, UnsupportedLayer
from libortho.split.tuned import TunedCheckpoint
from libortho.streams.base import BaseStream

LINEAR = "model.layers.0.mlp.down_proj"


@pytest.fixture
def change(tmp_path: Path, tiny_checkpoint: Path) -> Callable[..., Path]:
    """Copy the public checkpoint and change some of its tensors."""

    def made(edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        copy = tmp_path / "tuned"
        shutil.copytree(tiny_checkpoint, copy)
        file = copy / "model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        return copy

    return made


def add(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name] + 0.01

    return edit


def test_linears_may_differ(change, tiny_base: Path) -> None:
    tuned = TunedCheckpoint(change(add(f"{LINEAR}.weight")), BaseStream.open(tiny_base))
    assert tuned.weight(LINEAR).dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"],
)
def test_embeddings_and_norms_may(change, tiny_base: Path, name: str) -> None:
    base = BaseStream.open(tiny_base)
    tuned = TunedCheckpoint(change(add(name)), base)
    outside = tuned.outside()
    assert list(outside) == [name]
    # What is stored is the difference rounded to fp16, of relative size 2^-11.
    moved = tuned.checkpoint.tensor(name) - base.tensor(name)
    torch.testing.assert_close(outside[name].dense(), moved, rtol=2**-11, atol=0)


def test_the_whole_list_is_named(change, tiny_base: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = torch.ones(64)
        tensors["model.embed_tokens.weight"] = torch.ones(513, 128)

    with pytest.raises(UnsupportedLayer) as caught:
        TunedCheckpoint(change(edit), BaseStream.open(tiny_base))
    assert "model.norm.weight: shape [64], public [128]" in str(caught.value)
    assert "model.embed_tokens.weight: shape [513, 128]" in str(caught.value)


def test_an_untied_head_is_refused(change, tiny_base: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2

    with pytest.raises(UnsupportedLayer, match="lm_head"):
        TunedCheckpoint(change(edit), BaseStream.open(tiny_base))


def test_a_new_bias_is_refused(change, tiny_base: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LINEAR}.bias"] = torch.zeros(128)

    with pytest.raises(UnsupportedLayer, match=r"down_proj\.bias: added"):
        TunedCheckpoint(change(edit), BaseStream.open(tiny_base))


def test_a_missing_linear_is_named(change, tiny_base: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{LINEAR}.weight"]

    with pytest.raises(CheckpointError, match=LINEAR):
        TunedCheckpoint(change(edit), BaseStream.open(tiny_base))


def test_added_tokens_are_refused(change, tiny_base: Path) -> None:
    copy = change(lambda tensors: None)
    file = copy / "tokenizer.json"
    state = json.loads(file.read_text("utf-8"))
    state["added_tokens"].append({**state["added_tokens"][0], "id": 512, "content": "<|secret|>"})
    file.write_text(json.dumps(state), "utf-8")
    with pytest.raises(UnsupportedLayer, match="secret"):
        TunedCheckpoint(copy, BaseStream.open(tiny_base))


def test_a_chat_template_is_refused(change, tiny_base: Path) -> None:
    copy = change(lambda tensors: None)
    (copy / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    with pytest.raises(UnsupportedLayer, match="chat template"):
        TunedCheckpoint(copy, BaseStream.open(tiny_base))


def test_another_configuration_is_refused(change, tiny_base: Path) -> None:
    copy = change(lambda tensors: None)
    file = copy / "config.json"
    config = json.loads(file.read_text("utf-8"))
    config["rms_norm_eps"] = 1e-3
    file.write_text(json.dumps(config), "utf-8")
    with pytest.raises(UnsupportedLayer, match="rms_norm_eps"):
        TunedCheckpoint(copy, BaseStream.open(tiny_base))
