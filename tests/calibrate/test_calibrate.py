"""Block by block equals the whole model: hidden states, second moments, and bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from libortho import calibrate as room
from libortho.calibrate import BlockWalk, hessians, layers_by_block
from libortho.checkpoint import Checkpoint
from libortho.errors import CheckpointError, NumericsError
from libortho.streams.base import BaseStream


def draw(windows: int = 6, length: int = 32) -> torch.Tensor:
    return torch.randint(1, 512, (windows, length), generator=torch.Generator().manual_seed(0))


@contextmanager
def recorded(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """E[x xᵀ] in float64 of every linear's input over one forward of the whole model."""
    found: dict[str, torch.Tensor] = {}

    def hook(name: str):
        def record(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            rows = args[0].detach().flatten(0, -2).double()
            found[name] = rows.t() @ rows / rows.shape[0]

        return record

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    yield found
    for handle in handles:
        handle.remove()


def expected_moments(model: PreTrainedModel, windows: torch.Tensor) -> dict[str, torch.Tensor]:
    with recorded(model) as found, torch.no_grad():
        model(windows)
    return found


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, moment in found.items():
        scale = float(expected[name].abs().max())
        distance = float((moment.double() - expected[name]).abs().max())
        assert distance < 1e-5 * scale, name


def test_second_moments_are_those_of_the_whole_model(
    tiny_checkpoint: Path, tiny_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "TOKENS_AT_ONCE", 64)  # several batches
    found = dict(hessians(Checkpoint(tiny_checkpoint), draw()))
    assert len(found) == 14
    compare(found, expected_moments(tiny_model, draw()))
    first = "model.layers.0.self_attn"
    assert found[f"{first}.q_proj"] is found[f"{first}.v_proj"]
    assert found[f"{first}.q_proj"] is not found[f"{first}.o_proj"]


def test_given_weights_take_part_in_the_forward(
    tiny_checkpoint: Path, tiny_model: PreTrainedModel, tiny_base: Path
) -> None:
    base = BaseStream.open(tiny_base)
    found = dict(
        hessians(Checkpoint(tiny_checkpoint), draw(), list(base.layers), weights=base.weight)
    )
    public = expected_moments(tiny_model, draw())
    with torch.no_grad():
        for name in base.layers:
            tiny_model.get_parameter(f"{name}.weight").copy_(base.weight(name))
    compare(found, expected_moments(tiny_model, draw()))
    last = "model.layers.1.mlp.down_proj"
    assert float((found[last] - public[last]).abs().max()) > 1e-3 * float(public[last].abs().max())


def test_what_each_block_is_given_is_its_own(tmp_path: Path) -> None:
    """Gemma 3 alternates masks and rotations: the first block's would be wrong for the others."""
    config = Gemma3TextConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=512,
        max_position_embeddings=128,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    model = Gemma3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    found = dict(hessians(Checkpoint(tmp_path), draw()))
    assert len(found) == 21
    compare(found, expected_moments(model, draw()))


def test_one_blocks_weights_are_in_memory(tiny_checkpoint: Path) -> None:
    walk = BlockWalk(Checkpoint(tiny_checkpoint), draw())

    def loaded() -> set[str]:
        return {
            next((block for block in walk.blocks if name.startswith(block)), name)
            for name, parameter in walk.skeleton.named_parameters()
            if not parameter.is_meta
        }

    assert loaded() == set()
    for block in walk.blocks:
        walk.load(block)
        assert loaded() == {block}
        walk.advance(block)
    assert loaded() == set()


def test_the_hidden_states_reach_the_end_of_the_model(
    tiny_checkpoint: Path, tiny_model: PreTrainedModel
) -> None:
    walk = BlockWalk(Checkpoint(tiny_checkpoint), draw())
    for block in walk.blocks:
        walk.load(block)
        walk.advance(block)
    with torch.no_grad():
        logits = tiny_model.lm_head(tiny_model.model.norm(torch.cat(walk._hidden)))
        expected = tiny_model(draw()).logits
    assert torch.allclose(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_layers_that_cannot_be_calibrated_are_named(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"outside the decoder blocks: lm_head, nowhere"):
        layers_by_block(["model.layers.0"], ["lm_head", "model.layers.0.mlp.up_proj", "nowhere"])
    walk = BlockWalk(Checkpoint(tiny_checkpoint), draw())
    walk.load(walk.blocks[0])
    walk.skeleton.model.layers[0].mlp.add_module("unused", torch.nn.Linear(4, 4))
    with pytest.raises(CheckpointError, match=r"no calibration text reached .*mlp\.unused"):
        walk.second_moments(walk.blocks[0], ["model.layers.0.mlp.unused"])


def test_poisoned_hidden_states_are_an_error_with_the_block(tiny_checkpoint: Path) -> None:
    walk = BlockWalk(Checkpoint(tiny_checkpoint), draw())
    first = walk.blocks[0]
    walk.load(first)
    name = f"{first}.mlp.down_proj"
    walk.replace(name, torch.full_like(walk.weight(name), torch.inf))
    with pytest.raises(NumericsError, match=r"model\.layers\.0: the hidden states"):
        walk.advance(first)
