"""Names on disk against names in the model, by the rules of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from libortho.checkpoint import Checkpoint
from libortho.errors import CheckpointError
from libortho.model import load
from libortho.naming import Naming, expert_matrices
from libortho.quantize import quantize


@pytest.fixture
def mixtral() -> MixtralForCausalLM:
    config = MixtralConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_local_experts=3,
        vocab_size=16,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    return MixtralForCausalLM(config).eval()


def experts(count: int = 3) -> dict[str, tuple[int, ...]]:
    shapes = {"w1": (16, 8), "w2": (8, 16), "w3": (16, 8)}
    return {
        f"model.layers.0.block_sparse_moe.experts.{index}.{name}.weight": shape
        for index in range(count)
        for name, shape in shapes.items()
    }


def test_a_stack_is_made_of_matrices_in_the_order_of_the_experts(mixtral) -> None:
    naming = Naming(mixtral, experts())
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    assert set(naming) == {stack, "model.layers.0.mlp.experts.down_proj"}
    assert naming.shape(stack) == (3, 32, 8)
    assert naming.whole(stack) is None
    tensors = {name: torch.randn(shape) for name, shape in experts().items()}
    built = naming.build(stack, tensors.__getitem__)
    prefix = "model.layers.0.block_sparse_moe.experts"
    for index in range(3):
        gate, up = (tensors[f"{prefix}.{index}.{name}.weight"] for name in ("w1", "w3"))
        assert torch.equal(built[index], torch.cat([gate, up]))
    assert len(expert_matrices(mixtral, naming)[stack]) == 6


def test_what_no_parameter_is_made_of_stays_unclaimed(mixtral) -> None:
    naming = Naming(mixtral, {**experts(), "model.norm.weight": (8,), "adapter.extra": (1,)})
    assert naming.unclaimed() == {"adapter.extra"}
    assert naming.whole("model.norm.weight") == "model.norm.weight"
    assert naming.whole("model.embed_tokens.weight") is None
    assert "model.embed_tokens.weight" not in naming


def test_matrices_that_do_not_stack_are_named(mixtral) -> None:
    wrong = experts() | {"model.layers.0.block_sparse_moe.experts.1.w2.weight": (8, 15)}
    with pytest.raises(CheckpointError, match=r"experts\.down_proj"):
        Naming(mixtral, wrong)


def test_a_checkpoint_of_the_bare_decoder_is_read(
    tmp_path: Path, make_tiny_checkpoint, tiny_base: Path
) -> None:
    """Saved without the language model's head, tensors lack the prefix ``model.``."""
    public = make_tiny_checkpoint(tmp_path / "public")
    tensors = load_file(public / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, public / "model.safetensors", metadata={"format": "pt"})
    Checkpoint(public).validate()
    base = quantize(public, tmp_path / "base", method="mse")
    assert "layers.0.mlp.up_proj.weight_packed" in base.checkpoint.names()
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(load(base.path)(ids).logits, load(tiny_base)(ids).logits)
