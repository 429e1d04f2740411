"""A LoRA is trained over a converted model, saved by PEFT, and becomes a stream."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import libortho
from libortho import gate
from libortho.errors import AlphaError, UnsupportedLayer
from libortho.gate import StreamInfo
from libortho.integrations.peft import OrthoLora, over_streams
from libortho.model import attach_layers, linears, load
from libortho.streams.base import BaseStream

PRIVATE = StreamInfo("private", "id-private", False)


def lora(**options: Any) -> LoraConfig:
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options}
    return over_streams(LoraConfig(task_type="CAUSAL_LM", **options))


@pytest.fixture
def model(own_base: Path) -> Any:
    return load(own_base)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(1, 512, (4, 12), generator=torch.Generator().manual_seed(0))


def logits(model: Any, ids: Tensor, alpha: Any = 0) -> Tensor:
    with torch.no_grad(), gate.alpha(alpha):
        return model(input_ids=ids).logits


def train(adapted: Any, ids: Tensor, steps: int = 8, alpha: Any = 0) -> list[float]:
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        with gate.alpha(alpha):
            loss = adapted(input_ids=ids, labels=ids).loss
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def test_it_trains_saves_and_becomes_a_stream(model, own_base: Path, ids, tmp_path: Path) -> None:
    before = {f: f.read_bytes() for f in own_base.rglob("*") if f.is_file()}
    torch.manual_seed(0)
    adapted = get_peft_model(model, lora(use_rslora=True))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    losses = train(adapted, ids)
    assert losses[-1] < 0.9 * losses[0]
    adapted.eval()
    expected = logits(adapted, ids)
    adapted.save_pretrained(tmp_path / "adapter")
    assert {f: f.read_bytes() for f in own_base.rglob("*") if f.is_file()} == before

    libortho.split(own_base, own_base, tuned=tmp_path / "adapter", stream="lora")
    streamed = load(own_base, ["lora"])
    # The same products in the same order, but for where the scale is applied.
    torch.testing.assert_close(logits(streamed, ids, 1), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(streamed, ids, 0), logits(load(own_base), ids))
    assert float((expected - logits(streamed, ids, 0)).abs().max()) > 1e-2


def test_a_saved_adapter_is_loaded_over_a_converted_model(model, ids, tmp_path: Path) -> None:
    adapted = get_peft_model(model, lora())
    train(adapted, ids, steps=2)
    adapted.eval()
    expected = logits(adapted, ids)
    adapted.save_pretrained(tmp_path)
    config = over_streams(PeftConfig.from_pretrained(str(tmp_path)))
    again = PeftModel.from_pretrained(load(model.ortho.base.path), str(tmp_path), config=config)
    assert torch.equal(logits(again, ids), expected)


def test_the_gate_acts_beneath_an_adapter(model, ids, make_layers) -> None:
    attach_layers(model, PRIVATE, make_layers())
    plain = {alpha: logits(model, ids, alpha) for alpha in (0, 1)}
    adapted = get_peft_model(model, lora())
    for alpha, expected in plain.items():  # a fresh adapter adds nothing
        assert torch.equal(logits(adapted, ids, alpha), expected)
    train(adapted, ids, steps=2, alpha=1)
    adapted.eval()
    assert not torch.equal(logits(adapted, ids, 0), logits(adapted, ids, 1))
    mixed = logits(adapted, ids, [0, 1, 0, 1])
    assert torch.equal(mixed[0], logits(adapted, ids, [0, 0, 0, 0])[0])
    with gate.alpha(1):
        cache = adapted(input_ids=ids).past_key_values
    with pytest.raises(AlphaError, match="begin with an empty cache"):
        adapted(input_ids=ids[:, :1], past_key_values=cache)


def test_streams_come_and_go_beneath_an_adapter(model, ids, make_layers) -> None:
    names = set(linears(model))
    adapted = get_peft_model(model, lora())
    assert set(linears(model)) == names
    closed = logits(adapted, ids)
    attach_layers(model, PRIVATE, make_layers())
    assert torch.equal(logits(adapted, ids, 0), closed)
    assert not torch.equal(logits(adapted, ids, 1), closed)
    libortho.detach(model, "private")
    assert not any(module.streams for module in linears(model).values())


def test_it_generates(model, ids) -> None:
    adapted = get_peft_model(model, lora()).eval()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    expected = load(model.ortho.base.path).generate(ids, attention_mask=mask, **options)
    assert torch.equal(adapted.generate(input_ids=ids, attention_mask=mask, **options), expected)


def test_gradients_are_those_without_checkpointing(model, ids, make_layers) -> None:
    attach_layers(model, PRIVATE, make_layers())
    adapted = get_peft_model(model, lora(init_lora_weights=False))

    def gradients() -> dict[str, Tensor]:
        adapted.zero_grad()
        with gate.alpha([0, 1, 0.5, 1]):
            loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        named = adapted.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    expected = gradients()
    adapted.train()
    adapted.enable_input_require_grads()
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_merge_is_refused(model, ids) -> None:
    adapted = get_peft_model(model, lora(init_lora_weights=False))
    expected = logits(adapted, ids)
    for merge in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(UnsupportedLayer, match="cannot be merged into an INT4 base"):
            merge()
    assert torch.equal(logits(adapted, ids), expected)
    assert any(isinstance(module, OrthoLora) for module in adapted.modules())


def test_options_that_no_stream_can_keep_are_refused_together() -> None:
    with pytest.raises(UnsupportedLayer) as caught:
        lora(use_dora=True, init_lora_weights="olora", modules_to_save=["lm_head"])
    for word in ("use_dora", "'olora'", "modules_to_save"):
        assert word in str(caught.value)
    with pytest.raises(UnsupportedLayer, match="IA3Config"):
        over_streams(peft.IA3Config(target_modules=["q_proj"]))


def test_an_adapter_of_another_width_is_refused(model, own_base: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(model, lora())
    adapted.save_pretrained(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(name for name in tensors if "lora_A" in name)
    tensors[first] = torch.zeros(4, 64)
    save_file(tensors, weights)
    streams = shutil.copytree(own_base, tmp_path / "copy")
    with pytest.raises(UnsupportedLayer, match=r"\(128, 64\), the base has \(128, 256\)"):
        libortho.split(streams, streams, tuned=tmp_path / "adapter")
    assert BaseStream.open(streams).verify() == []
    assert not (Path(streams) / "ortho").exists()
