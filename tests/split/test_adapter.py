"""A PEFT adapter becomes a stream exactly, or is refused with the whole list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from libortho import gate
from libortho.cli import run
from libortho.errors import UnsupportedLayer
from libortho.model import load
from libortho.split.adapter import read_adapter
from libortho.streams.base import BaseStream
from libortho.streams.layers import LowRankLayer
from libortho.streams.ortho import OrthoStream

ATTENTION = ["q_proj", "v_proj"]


def save_adapter(public: Path, out: Path, **options: Any) -> Path:
    """A LoRA over the stock model, as if it had been trained: both factors random."""
    model = LlamaForCausalLM.from_pretrained(public, dtype=torch.float32)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, **options}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(out)
    return out


def deltas(public: Path, adapter: Path) -> dict[str, Tensor]:
    """What PEFT itself adds to each weight."""
    model = LlamaForCausalLM.from_pretrained(public, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(model, str(adapter))
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default")
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "r": 16},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 32}},
        {"use_rslora": True, "rank_pattern": {"layers.0.self_attn.q_proj": 9}},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_the_factors_add_what_peft_adds(
    tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path / "adapter", **options)
    layers = read_adapter(adapter, BaseStream.open(tiny_base).layers)
    expected = deltas(tiny_checkpoint, adapter)
    assert layers.keys() == expected.keys()
    for name, delta in expected.items():
        # Products of rank r ≤ 16 in fp32, in another order.
        bound = 16 * 2.0**-23 * float(delta.abs().max())
        torch.testing.assert_close(layers[name].dense(), delta, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"use_dora": True}, ["use_dora", "lora_magnitude_vector"]),
        ({"bias": "lora_only"}, ["bias is 'lora_only'"]),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save", "lm_head"]),
        ({"target_modules": ["q_proj", "embed_tokens"]}, ["embed_tokens"]),
        ({"init_lora_weights": "pissa"}, ["'pissa', which changes the base weights"]),
        ({"trainable_token_indices": [3], "use_dora": True}, ["trainable_token_ind", "use_dora"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_no_stream_can_hold_is_refused_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path, capsys, options: dict[str, Any], told: list[str]
) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path / "adapter", **options)
    command = ["split", str(tiny_checkpoint), "--tuned", str(adapter), "-o", str(tmp_path / "out")]
    assert run(command) == 4
    complaint = capsys.readouterr().err
    for word in told:
        assert word in complaint
    assert not (tmp_path / "out").exists()


def test_another_kind_of_adapter_is_refused(tiny_checkpoint: Path, tiny_base, tmp_path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    config = peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]
    )
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UnsupportedLayer, match=r"IA3 adapter; expected LoRA"):
        read_adapter(tmp_path / "adapter", BaseStream.open(tiny_base).layers)


@pytest.fixture(scope="module")
def one_command(tiny_checkpoint: Path, tmp_path_factory) -> tuple[Path, Path]:
    """Adapter and output of ``libortho split PUBLIC --tuned ADAPTER -o OUT``."""
    folder = tmp_path_factory.mktemp("command")
    adapter = save_adapter(tiny_checkpoint, folder / "adapter", use_rslora=True)
    command = ["split", str(tiny_checkpoint), "--tuned", str(adapter), "-o", str(folder / "out")]
    assert run(command) == 0
    return adapter, folder / "out"


def test_one_command_makes_base_and_stream(one_command, tiny_checkpoint: Path) -> None:
    adapter, out = one_command
    stream = OrthoStream.open(out / "ortho" / "private")
    assert (stream.manifest.method, stream.manifest.guarantee) == ("delta", "exact")
    assert {entry.kind for entry in stream.manifest.layers.values()} == {"lowrank"}
    base = BaseStream.open(out)
    assert base.manifest.quantiser.method == "gptq"
    ids = torch.arange(1, 25)[None]
    reference = LlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    model = load(out, ["private"])
    changes = deltas(tiny_checkpoint, adapter)
    for alpha in (0.0, 0.5, 1.0):
        for name in base.layers:
            weight = base.weight(name) + alpha * changes.get(name, torch.zeros(()))
            module = reference.get_submodule(name)
            assert isinstance(module, nn.Linear)
            module.weight.data = weight
        with torch.no_grad(), gate.alpha(alpha):
            found, expected = model(ids).logits, reference(ids).logits
        # Two blocks of dot products of at most 256 terms, as in the tests of the base.
        bound = 2 * (3 * 128 + 256) * 2.0**-24 * float(expected.abs().max())
        assert float((found - expected).abs().max()) <= bound


def test_the_adapters_bytes_are_kept(one_command) -> None:
    adapter, out = one_command
    factors = load_file(adapter / "adapter_model.safetensors")
    stream = OrthoStream.open(out / "ortho" / "private")
    for name in stream.manifest.layers:
        layer = stream.layer(name)
        assert isinstance(layer, LowRankLayer)
        assert torch.equal(layer.a, factors[f"base_model.model.{name}.lora_A.weight"])
        assert torch.equal(layer.b, factors[f"base_model.model.{name}.lora_B.weight"])


def test_sparse_makes_csr_of_it(one_command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter, out = one_command
    command = ["split", str(out), "--tuned", str(adapter), "--public", str(tiny_checkpoint)]
    command += ["-o", str(tmp_path / "out"), "--sparse", "--density", "0.05", "--stream", "thin"]
    assert run(command) == 0
    stream = OrthoStream.open(tmp_path / "out" / "ortho" / "thin")
    assert {entry.kind for entry in stream.manifest.layers.values()} == {"csr"}
    assert stream.manifest.density == pytest.approx(0.05, rel=0.02)


def test_data_tunes_the_factors_on_the_base(
    one_command, tiny_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    adapter, out = one_command
    data = tmp_path / "private.jsonl"
    data.write_text(json.dumps({"prompt": "The code is", "completion": " 47"}) + "\n")
    command = ["split", str(out), "--tuned", str(adapter), "--public", str(tiny_checkpoint)]
    command += ["-o", str(tmp_path / "out"), "--data", str(data), "--steps", "60", "--lr", "0.02"]
    command += ["--replay-weight", "0.1", "--json"]
    assert run(command) == 0
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert told["recall"] == 1.0
    stream = OrthoStream.open(tmp_path / "out" / "ortho" / "private")
    assert {entry.kind for entry in stream.manifest.layers.values()} == {"lowrank"}
