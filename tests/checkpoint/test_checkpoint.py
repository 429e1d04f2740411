"""Checkpoints: what is read, what is refused, and what a weight's identity depends on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from libortho import checkpoint as room
from libortho.checkpoint import Checkpoint, block_names, linear_layers, resolve
from libortho.errors import CheckpointError

NORM = "model.norm.weight"
DOWN = "model.layers.1.mlp.down_proj"


def own_copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def edit(path: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Rewrite a one-file checkpoint with tensors replaced, or removed where None."""
    tensors = load_file(path / "model.safetensors")
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_reads_what_transformers_wrote(tiny_checkpoint: Path, tiny_model: LlamaForCausalLM) -> None:
    checkpoint = Checkpoint(tiny_checkpoint)
    checkpoint.validate()
    stored = {name for name, _ in tiny_model.named_parameters()}
    assert set(checkpoint.names()) == stored
    for name, parameter in tiny_model.named_parameters():
        assert torch.equal(checkpoint.tensor(name), parameter)
        assert checkpoint.shape(name) == tuple(parameter.shape)
        assert checkpoint.dtype(name) == parameter.dtype


def test_sharding_does_not_change_the_sha256(
    tmp_path: Path, tiny_checkpoint: Path, tiny_model: LlamaForCausalLM
) -> None:
    tiny_model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sharded = Checkpoint(tmp_path)
    sharded.validate()
    assert sharded.sha256() == Checkpoint(tiny_checkpoint).sha256()


def test_one_weight_changes_the_sha256(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = own_copy(tiny_checkpoint, tmp_path / "own")
    norm = Checkpoint(path).tensor(NORM)
    norm[0] = torch.nextafter(norm[0], torch.tensor(2.0))
    edit(path, {NORM: norm})
    assert Checkpoint(path).sha256() != Checkpoint(tiny_checkpoint).sha256()


def test_scales_follow_the_dtype(tiny_checkpoint: Path, tiny_checkpoint_bf16: Path) -> None:
    half, brain = Checkpoint(tiny_checkpoint), Checkpoint(tiny_checkpoint_bf16)
    brain.skeleton()
    assert half.scale_dtype == torch.float16
    assert brain.scale_dtype == torch.bfloat16


def test_the_skeleton_is_empty_tied_and_has_real_buffers(tiny_checkpoint: Path) -> None:
    skeleton = Checkpoint(tiny_checkpoint).skeleton()
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert skeleton.lm_head.weight is skeleton.model.embed_tokens.weight
    assert not any(buffer.is_meta for buffer in skeleton.buffers())
    assert block_names(skeleton) == ["model.layers.0", "model.layers.1"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_stays_and_blocks_are_converted(
    tmp_path: Path, make_tiny_checkpoint, tied: bool
) -> None:
    checkpoint = Checkpoint(make_tiny_checkpoint(tmp_path / "own", tied=tied))
    checkpoint.validate()
    layers, skipped = linear_layers(checkpoint.skeleton(), 128)
    assert len(layers) == 14
    assert layers[DOWN] == (128, 256)
    assert skipped == {"lm_head": "the output embedding"}


def test_odd_shapes_and_shared_weights_are_skipped_with_a_reason(tiny_checkpoint: Path) -> None:
    skeleton = Checkpoint(tiny_checkpoint).skeleton()
    mlp = skeleton.model.layers[1].mlp
    mlp.down_proj = torch.nn.Linear(250, 128, bias=False, device="meta")
    mlp.up_proj.weight = skeleton.model.layers[0].mlp.up_proj.weight
    skeleton.extra = torch.nn.Linear(128, 128, device="meta")
    layers, skipped = linear_layers(skeleton, 128)
    assert len(layers) == 12
    assert skipped[DOWN] == "in_features 250 is not divisible by group size 128"
    assert skipped["model.layers.1.mlp.up_proj"].startswith("shares its weight with model.layers.0")
    assert skipped["extra"] == "outside the decoder blocks"


def test_all_missing_and_misshapen_weights_are_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = own_copy(tiny_checkpoint, tmp_path / "own")
    edit(
        path,
        {
            NORM: None,
            f"{DOWN}.weight": torch.zeros(128, 255),
            "model.layers.0.mlp.up_proj.weight": torch.zeros(256, 128, dtype=torch.int8),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path).validate()
    message = str(caught.value)
    assert f"{NORM} is missing" in message
    assert f"{DOWN}.weight has shape [128, 255], expected [128, 256]" in message
    assert "up_proj.weight has dtype torch.int8" in message


def test_a_quantised_checkpoint_is_refused(tiny_base: Path) -> None:
    with pytest.raises(CheckpointError, match="quantised already"):
        Checkpoint(tiny_base).validate()


def test_broken_directories_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Checkpoint(tmp_path)
    path = own_copy(tiny_checkpoint, tmp_path / "own")
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        Checkpoint(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        Checkpoint(path)


def test_an_index_that_lies_is_refused_with_the_whole_list(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    path = own_copy(tiny_checkpoint, tmp_path / "own")
    (tmp_path / "outside.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    placed = {
        NORM: "../outside.safetensors",
        "model.embed_tokens.weight": "gone.safetensors",
        "no.such.tensor": "model.safetensors",
    }
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path)
    message = str(caught.value)
    assert "'../outside.safetensors' leaves the directory" in message
    assert "gone.safetensors is missing" in message
    assert "lacks the tensor no.such.tensor" in message


def test_the_word_reference_names_the_packaged_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    monkeypatch.setattr(room.importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="not installed"):
        resolve("reference")
    own_copy(tiny_checkpoint, tmp_path / "reference")
    assert resolve("reference") == tmp_path / "reference"


def test_tensors_survive_their_file(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Nothing stays mapped: overwriting the file must not reach a tensor read before."""
    path = own_copy(tiny_checkpoint, tmp_path / "own")
    tensor = Checkpoint(path).tensor(NORM)
    kept = tensor.clone()
    with (path / "model.safetensors").open("r+b") as handle:
        handle.write(b"\0" * (path / "model.safetensors").stat().st_size)
    assert torch.equal(tensor, kept)


def test_stock_transformers_agrees_about_the_configuration(tiny_checkpoint: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    assert Checkpoint(tiny_checkpoint).config.to_dict() == config.to_dict()
    assert isinstance(AutoModelForCausalLM.from_config(config), LlamaForCausalLM)
