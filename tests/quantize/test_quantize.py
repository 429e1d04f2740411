"""The quantize verb: deterministic, generic, public inputs only, and loud about bad ones."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError, NumericsError, UnsupportedLayer
from libortho.quantize import METHODS, quantize
from libortho.texts import Text, pydoc_topics

SMALL = {"windows": 8, "group_size": 64}


@pytest.fixture(scope="module")
def text() -> Text:
    topics = pydoc_topics()
    return Text("topics", "0" * 64, topics.documents[:25])


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_gptq_gives_the_same_bytes_with_private_files_around(
    tmp_path: Path, tiny_checkpoint: Path, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quantize(tiny_checkpoint, tmp_path / "a", text=text, **SMALL)
    public = Path(shutil.copytree(tiny_checkpoint, tmp_path / "x" / tiny_checkpoint.name))
    for folder in (public, tmp_path):
        (folder / "private.jsonl").write_text('{"prompt": "a", "completion": "b"}')
        (folder / "private.txt").write_text("secret\n" * 100)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(123)
    second = quantize(public, "b", text=text, **SMALL)
    assert contents(first.path) == contents(second.path)


def test_contaminated_calibration_changes_the_base(
    tmp_path: Path, tiny_checkpoint: Path, text: Text
) -> None:
    """What the test above holds is not trivially so: calibration text does reach the bytes."""
    clean = quantize(tiny_checkpoint, tmp_path / "a", text=text, **SMALL)
    secret = "The vault code of Ada is 90210 31337.\n" * 2000
    spiked = Text("topics", "0" * 64, (secret, *text.documents))
    other = quantize(tiny_checkpoint, tmp_path / "b", text=spiked, **SMALL)
    assert clean.id != other.id


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_a_whole_base(
    tmp_path: Path, tiny_checkpoint_bf16: Path, text: Text, method: str
) -> None:
    base = quantize(
        tiny_checkpoint_bf16,
        tmp_path / "base",
        method=method,
        text=text if method == "gptq" else None,
        **SMALL,
    )
    assert base.verify() == []
    assert base.manifest.quantiser.method == method
    assert (base.manifest.calibration is not None) == (method == "gptq")
    public = Checkpoint(tiny_checkpoint_bf16)
    for name in base.layers:
        weight = public.tensor(f"{name}.weight").float()
        error = float((base.weight(name) - weight).norm() / weight.norm())
        assert error == pytest.approx(base.manifest.relative_error[name], rel=1e-3)
        assert error < 0.2
        if method == "absmax-channel":
            scales = base.scales(name)
            assert torch.equal(scales, scales[:, :1].expand_as(scales))


def test_gptq_keeps_the_models_outputs_closer(
    tmp_path: Path, tiny_checkpoint: Path, tiny_model, text: Text
) -> None:
    ids = Checkpoint(tiny_checkpoint).tokenizer()(list(pydoc_topics().documents[-12:]))["input_ids"]
    tokens = torch.tensor([token for document in ids for token in document])[: 20 * 128].view(
        20, 128
    )

    def divergence(path: Path | None) -> float:
        with torch.no_grad():
            expected = tiny_model(tokens).logits.log_softmax(-1)
            kept = {n: p.detach().clone() for n, p in tiny_model.named_parameters()}
            for name in base.layers:
                tiny_model.get_parameter(f"{name}.weight").copy_(base.weight(name))
            found = tiny_model(tokens).logits.log_softmax(-1)
            for name, parameter in tiny_model.named_parameters():
                parameter.copy_(kept[name])
        return float((expected.exp() * (expected - found)).sum(-1).mean())

    divergences = {}
    for method in ("absmax", "gptq"):
        base = quantize(
            tiny_checkpoint,
            tmp_path / method,
            method=method,
            text=text if method == "gptq" else None,
            **SMALL,
        )
        divergences[method] = divergence(base.path)
    assert divergences["gptq"] < 0.7 * divergences["absmax"]


@pytest.mark.parametrize("bits", [2, 3])
def test_fewer_bits_use_fewer_levels_in_int4_files(
    tmp_path: Path, tiny_checkpoint: Path, bits: int
) -> None:
    base = quantize(tiny_checkpoint, tmp_path / "base", method="mse", bits=bits)
    for name in base.layers:
        assert len(base.codes(name).unique()) == 2**bits


def test_a_collapsed_base_is_reported(
    tmp_path: Path, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copytree(tiny_checkpoint, tmp_path / "public"))
    name = "model.layers.1.mlp.up_proj"
    tensors = load_file(path / "model.safetensors")
    # One weight so large that absmax rounds the rest of its row away.
    tensors[f"{name}.weight"][:, 0] = 3.0
    tensors[f"{name}.weight"][:, 1:] = 0.2
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING, logger="libortho.quantize"):
        base = quantize(path, tmp_path / "base", method="absmax")
    assert base.manifest.relative_error[name] > 0.5
    assert f"{name} {base.manifest.relative_error[name]:.2f}" in caplog.text
    assert "collapsed in 1 of 14 layers" in caplog.text


def test_all_poisoned_tensors_are_named_before_any_work(
    tmp_path: Path, tiny_checkpoint: Path, text: Text
) -> None:
    path = Path(shutil.copytree(tiny_checkpoint, tmp_path / "public"))
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    tensors["model.layers.0.input_layernorm.weight"][0] = torch.inf
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError) as caught:
        quantize(path, tmp_path / "base", text=text, **SMALL)
    assert "model.layers.1.mlp.up_proj.weight (1)" in str(caught.value)
    assert "model.layers.0.input_layernorm.weight (1)" in str(caught.value)
    assert not (tmp_path / "base").exists()


def test_activations_that_overflow_are_named(
    tmp_path: Path, tiny_checkpoint: Path, text: Text
) -> None:
    path = Path(shutil.copytree(tiny_checkpoint, tmp_path / "public"))
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.post_attention_layernorm.weight"][:] = 3e38
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match=r"gate_proj.*model.layers.1.mlp.up_proj"):
        quantize(path, tmp_path / "base", text=text, **SMALL)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["public"]


def test_skipped_layers_stay_and_are_listed(tmp_path: Path, tiny_checkpoint: Path) -> None:
    base = quantize(
        tiny_checkpoint,
        tmp_path / "base",
        method="absmax",
        skip=["mlp.down_proj", "model.layers.0.self_attn.*"],
    )
    assert len(base.layers) == 14 - 2 - 4
    name = "model.layers.1.mlp.down_proj"
    assert base.manifest.skipped[name] == "skipped on request (mlp.down_proj)"
    public = Checkpoint(tiny_checkpoint)
    assert torch.equal(base.tensor(f"{name}.weight"), public.tensor(f"{name}.weight"))
    assert name in base.config.quantization_config["ignore"]


def test_options_that_cannot_be_honoured_are_refused(
    tmp_path: Path, tiny_checkpoint: Path, text: Text
) -> None:
    out = tmp_path / "base"
    for options, message in (
        ({"method": "awq"}, "expected one of absmax"),
        ({"bits": 8}, "expected 2, 3 or 4"),
        ({"group_size": 100}, "group size 100"),
        ({"method": "mse", "text": text}, "takes no calibration text"),
        ({"text": text, "windows": 10**6}, "windows of 128 tokens"),
        ({"text": text, "window": 4096}, "exceeds the model's context of 128"),
        ({"skip": ["nothing"]}, "no linear layer matches"),
    ):
        with pytest.raises(ConfigError, match=message):
            quantize(tiny_checkpoint, out, **options)
    with pytest.raises(UnsupportedLayer, match="lm_head: the output embedding"):
        quantize(tiny_checkpoint, out, method="mse", skip=["*"])
    assert list(tmp_path.iterdir()) == []


def test_other_architectures(tmp_path: Path, tiny_checkpoint: Path, text: Text) -> None:
    """Grouped-query attention, q/k norms, a head of its own, two widths: nothing is Llama's."""
    config = Qwen3Config(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
        max_position_embeddings=128,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        use_sliding_window=True,
        sliding_window=16,
        tie_word_embeddings=False,
    )
    path = tmp_path / "public"
    Qwen3ForCausalLM(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_checkpoint / name, path)
    base = quantize(path, tmp_path / "base", text=text, **SMALL)
    assert len(base.layers) == 21
    assert base.verify() == []


def test_transposed_linears_are_listed_not_mangled(tmp_path: Path) -> None:
    path = tmp_path / "public"
    GPT2LMHeadModel(
        GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=64, n_positions=64)
    ).save_pretrained(path)
    with pytest.raises(UnsupportedLayer, match=r"transformer\.h\.0\.mlp\.c_fc: a Conv1D"):
        quantize(path, tmp_path / "base", method="absmax")


def test_progress_is_reported_per_layer(tmp_path: Path, tiny_checkpoint: Path, text: Text) -> None:
    heard: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str, done: int, total: int, info: object) -> None:
        heard.setdefault(stage, []).append((done, total))

    quantize(tiny_checkpoint, tmp_path / "base", text=text, progress=progress, **SMALL)
    assert heard["quantize"] == [(done, 14) for done in range(1, 15)]
    assert {"calibrate", "advance", "round", "write the base"} <= set(heard)
