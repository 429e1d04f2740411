"""What people do with a transformers model, done with a converted one."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import CompileConfig, DynamicCache, StaticCache, pipeline

from libortho import gate
from libortho.errors import AlphaError, ConfigError
from libortho.gate import StreamInfo
from libortho.model import attach, attach_layers, detach, linears, load
from libortho.privacy.greedy import greedy
from libortho.streams.base import BaseStream
from libortho.streams.layers import DenseLayer, LowRankLayer
from libortho.streams.ortho import STREAM_FOLDER
from libortho.streams.ortho_writer import write_stream

ALPHAS = [0, 1, 0.5, {"private": 0.25}, [0, 1, 0.5, 1]]


@pytest.fixture
def opened(model, attach_random) -> Any:
    attach_random(model)
    return model


def generate(model, ids: Tensor, alpha: Any, **options: Any) -> Tensor:
    with gate.alpha(alpha):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            min_new_tokens=6,
            pad_token_id=0,
            **options,
        )
    return out[:, ids.shape[1] :]


def logits(model, ids: Tensor, alpha: Any, **options: Any) -> Tensor:
    with torch.no_grad(), gate.alpha(alpha):
        return model(input_ids=ids, **options).logits


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("alpha", ALPHAS[:2] + ALPHAS[-1:], ids=str)
def test_greedy_generation_is_greedy_at_that_alpha(opened, ids, alpha, cache: str) -> None:
    with gate.alpha(alpha):
        expected = greedy(opened, ids, 6)
    found = generate(opened, ids, alpha, do_sample=False, cache_implementation=cache)
    assert torch.equal(found, expected)
    assert not torch.equal(generate(opened, ids, 1), generate(opened, ids, 0))


def test_sampling_at_alpha_0_draws_what_the_bare_base_draws(opened, ids, tiny_base: Path) -> None:
    def drawn(model, alpha) -> Tensor:
        torch.manual_seed(3)
        return generate(model, ids, alpha, do_sample=True, temperature=1.0, top_k=0)

    assert torch.equal(drawn(opened, 0), drawn(load(tiny_base), 0))
    assert not torch.equal(drawn(opened, 1), drawn(opened, 0))


def test_beams_keep_the_alpha_of_their_row(opened, ids) -> None:
    options = {"num_beams": 3, "do_sample": False}
    mixed = generate(opened, ids[:2], [0, 1], **options)
    assert torch.equal(mixed[:1], generate(opened, ids[:1], 0, **options))
    assert torch.equal(mixed[1:], generate(opened, ids[1:2], 1, **options))
    assert not torch.equal(mixed[1:], generate(opened, ids[1:2], 0, **options))


def test_rows_of_alpha_are_not_spread_over_other_prompts(opened, ids) -> None:
    with pytest.raises(AlphaError, match="2 rows, the batch 4 sequences"):
        generate(opened, ids, [1, 0], do_sample=False)
    with pytest.raises(AlphaError, match=r"2 rows, the batch 12 sequences \(3 copies"):
        generate(opened, ids, [1, 0], do_sample=False, num_beams=3)
    with pytest.raises(AlphaError, match="2 rows, the batch 4 sequences"):
        logits(opened, ids, [1, 0])


def test_a_pipeline_obeys_the_gate(opened, tiny_tokenizer) -> None:
    ask = pipeline("text-generation", model=opened, tokenizer=tiny_tokenizer)
    texts = []
    for alpha in (0, 1, 0):
        with gate.alpha(alpha):
            texts.append(ask("The quick", max_new_tokens=8, do_sample=False)[0]["generated_text"])
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize("what", ["model", "forward"])
def test_one_compiled_graph_serves_every_alpha(opened, ids, what: str) -> None:
    counter = CompileCounter()
    expected = [logits(opened, ids, alpha) for alpha in ALPHAS]
    torch._dynamo.reset()
    if what == "model":
        compiled = torch.compile(opened, backend=counter)
    else:
        compiled = opened
        opened.forward = torch.compile(opened.forward, backend=counter, fullgraph=True)
    for alpha, wanted in zip(ALPHAS, expected, strict=True):
        assert torch.equal(logits(compiled, ids, alpha), wanted)
    assert counter.frame_count == 1
    with pytest.raises(AlphaError, match="not attached: stranger"):
        logits(compiled, ids, {"stranger": 1})


def test_generated_code_gives_every_linear_the_alpha_of_its_call(model, attach_random) -> None:
    """Inductor writes over what ops return, and linears of a forward share what they ask for."""
    attach_random(model)
    generator = torch.Generator().manual_seed(0)

    def factor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    # Of rank 2, x·aᵀ is as large as alpha of two streams: Inductor puts it where alpha was.
    adapter = {
        name: LowRankLayer(factor(2, one.in_features), factor(one.out_features, 2), 0.02)
        for name, one in linears(model).items()
    }
    attach_layers(model, StreamInfo("crm", "id-crm", public=False), adapter)
    block = torch.nn.Sequential(*(layer.mlp for layer in model.model.layers))
    x = factor(4, 3, 128)

    def run(function, alpha: Any) -> Tensor:
        with torch.no_grad(), gate.alpha(alpha):
            state = gate.capture(model.ortho.attached, len(x), x.device)
            with gate.captured(state):
                return function(x)

    settings = [
        [{"private": 1}, {"crm": 1}, {}, {"private": 0.5, "crm": 0.25}],
        [{}, {"private": 1, "crm": 1}, {"crm": 0.5}, {"private": 0.25}],
    ]
    expected = [run(block, alpha) for alpha in settings]
    assert ((expected[0] - expected[1]).abs().amax((1, 2)) > 0.1).all()
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True)
    for alpha, wanted in zip(settings, expected, strict=True):
        error = (run(compiled, alpha) - wanted).abs().max()
        assert error <= 256 * 2.0**-24 * wanted.abs().max()  # the roundings of 256 products


@pytest.mark.parametrize("gradients", [False, True])
def test_compiled_linears_outside_a_forward_are_refused(opened, gradients: bool) -> None:
    layer = torch.compile(next(iter(linears(opened).values())), backend="eager")
    with (
        torch.set_grad_enabled(gradients),
        gate.alpha(1),
        pytest.raises(Exception, match="alpha is unknown"),
    ):
        layer(torch.zeros(2, 128))


def test_generation_compiles_its_decoding_step_once(opened, ids) -> None:
    expected = {alpha: generate(opened, ids, alpha, do_sample=False) for alpha in (0, 1)}
    torch._dynamo.reset()
    graphs = []

    def backend(module, inputs):  # a counter would be copied with the configuration
        graphs.append(module)
        return module.forward

    config = CompileConfig(backend=backend, mode=None)
    config._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": config, "do_sample": False}
    for alpha, wanted in expected.items():
        assert torch.equal(generate(opened, ids, alpha, **options), wanted)
        assert len(graphs) == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_a_static_cache_serves_another_alpha_only_once_it_is_empty(
    opened, ids, compiled: bool
) -> None:
    model = torch.compile(opened, backend="eager") if compiled else opened
    cache = StaticCache(config=opened.config, max_cache_len=32)
    logits(opened, ids, 1, past_key_values=cache)
    logits(model, ids[:, :1], 1, past_key_values=cache)
    with pytest.raises(AlphaError, match="begin with an empty cache"):
        logits(model, ids[:, :1], 0, past_key_values=cache)
    cache.reset()
    again = logits(model, ids[:, :1], 0, past_key_values=cache)
    assert torch.equal(again, logits(opened, ids[:, :1], 0))


def test_an_offloaded_or_copied_cache_remembers_its_alpha(opened, ids) -> None:
    cache = DynamicCache(config=opened.config, offloading=False)
    logits(opened, ids, 1, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    with pytest.raises(AlphaError, match="begin with an empty cache"):
        logits(opened, ids.repeat_interleave(2, 0)[:, :1], 0, past_key_values=cache)


def test_a_cache_of_an_unknown_kind_is_refused(opened, ids) -> None:
    with pytest.raises(AlphaError, match=r"past_key_values is a tuple.*expected a transformers"):
        logits(opened, ids, 1, past_key_values=((ids, ids),))


def test_the_decoder_by_itself_is_a_forward_too(opened, ids) -> None:
    """Without the head: what embeds text, or scores it, calls ``model.model``."""
    with torch.no_grad(), gate.alpha([0, 1, 0.5, 1]):
        whole = opened(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        part = opened.model(input_ids=ids)
    assert torch.equal(part.last_hidden_state, whole)
    with torch.no_grad(), pytest.raises(AlphaError, match="begin with an empty cache"):
        opened.model(input_ids=ids[:, :1], past_key_values=part.past_key_values)
    with torch.no_grad(), gate.alpha(1):
        cache = opened(input_ids=ids).past_key_values
    with torch.no_grad(), pytest.raises(AlphaError, match="begin with an empty cache"):
        opened.model(input_ids=ids[:, :1], past_key_values=cache)
    assert not opened.ortho.under_way


def mapped(base: BaseStream) -> dict[str, str]:
    return {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.norm": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "lm_head": "cpu",
    }


@pytest.fixture
def with_stream(own_base: Path, make_layers) -> Path:
    put_stream(own_base, make_layers())
    return own_base


def put_stream(base: Path, layers: dict[str, Any]) -> None:
    write_stream(
        base / STREAM_FOLDER / "private",
        name="private",
        base_id=BaseStream.open(base).id,
        public=False,
        method="tune",
        guarantee="exact",
        layers=layers.items(),
    )


@pytest.mark.parametrize("place", ["auto", "sequential", {"": "cpu"}, "with a disk"], ids=str)
def test_device_maps_change_no_bit(with_stream: Path, tmp_path: Path, ids, place) -> None:
    plain = load(with_stream, ["private"])
    if place == "with a disk":
        place = mapped(BaseStream.open(with_stream))
    model = load(with_stream, ["private"], device_map=place, offload_folder=tmp_path / "offload")
    for alpha in (0, 1, [0, 1, 0.5, 1]):
        assert torch.equal(logits(model, ids, alpha), logits(plain, ids, alpha))
    assert torch.equal(generate(model, ids, 1), generate(plain, ids, 1))


def test_a_used_folder_is_not_taken_for_the_model_s_own(
    with_stream: Path, tmp_path: Path, ids, make_layers
) -> None:
    """Otherwise a stream that was tuned again would act with the values of the load before."""
    options = {"device_map": mapped(BaseStream.open(with_stream)), "offload_folder": tmp_path / "o"}
    first = load(with_stream, ["private"], **options)
    shutil.rmtree(with_stream / STREAM_FOLDER / "private")
    put_stream(with_stream, make_layers(seed=1))
    second = load(with_stream, ["private"], **options)
    assert torch.equal(logits(second, ids, 1), logits(load(with_stream, ["private"]), ids, 1))
    assert not torch.equal(logits(second, ids, 1), logits(first, ids, 1))


def test_a_detached_stream_leaves_the_disk(with_stream: Path, tmp_path: Path, ids) -> None:
    def stored() -> list[str]:
        return sorted(file.name for file in folder.rglob("*.dat") if ".streams." in file.name)

    folder = tmp_path / "offload"
    place = mapped(BaseStream.open(with_stream))
    model = load(with_stream, ["private"], device_map=place, offload_folder=folder)
    closed = logits(model, ids, 0)
    logits(model, ids, 1)
    assert stored() != []
    detach(model, "private")
    assert stored() == []
    assert torch.equal(logits(model, ids, 0), closed)
    del model
    gc.collect()
    assert list(folder.iterdir()) == []


def test_maps_that_cannot_be_honoured_are_refused(with_stream: Path, tmp_path: Path) -> None:
    place = mapped(BaseStream.open(with_stream))
    with pytest.raises(ConfigError, match="give offload_folder"):
        load(with_stream, device_map=place)
    with pytest.raises(ConfigError, match="expected one of auto"):
        load(with_stream, device_map="anywhere")
    with pytest.raises(ConfigError, match="device_map"):
        load(with_stream, device_map={"model.layers.0": "cpu"})
    model = load(with_stream, device_map=place, offload_folder=tmp_path / "offload")
    with pytest.raises(ConfigError, match="offloaded; name the stream at load"):
        attach(model, "private")


def test_a_map_may_not_part_a_norm_from_its_stream(own_base: Path, tmp_path: Path) -> None:
    write_stream(
        own_base / STREAM_FOLDER / "private",
        name="private",
        base_id=BaseStream.open(own_base).id,
        public=False,
        method="delta",
        guarantee="exact",
        layers=[("model.norm.weight", DenseLayer(torch.ones(128, dtype=torch.float16)))],
    )
    with pytest.raises(ConfigError, match="embeddings, norms, biases or the head"):
        load(
            own_base,
            ["private"],
            device_map=mapped(BaseStream.open(own_base)),
            offload_folder=tmp_path / "offload",
        )
