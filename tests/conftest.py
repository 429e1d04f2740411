"""Tiny stand-ins for a checkpoint: a two-layer Llama and its byte-level tokenizer, built here."""

from __future__ import annotations

import pydoc_data.topics
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from libortho import gate
from libortho.privacy.encode import Encoded, pad
from libortho.quantize import quantize
from libortho.streams.base import BaseStream
from libortho.streams.layers import DenseLayer, Layer, LowRankLayer, csr_from_dense

VOCABULARY = 512
CONTEXT = 128
END = "<|endoftext|>"

MakeTiny = Callable[..., Path]
MakeLayers = Callable[..., dict[str, Layer]]
Memorise = Callable[..., PreTrainedModel]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits whose post-processor adds the leading end-of-text."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    topics = pydoc_data.topics.topics
    tokenizer.train_from_iterator((topics[key] for key in sorted(topics)[:20]), trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, 0)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=CONTEXT
    )


def build_checkpoint(
    path: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, tied: bool = True
) -> Path:
    """Write a 2-layer Llama (hidden 128, ffn 256, 2 heads, vocab 512) with seeded weights."""
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
        # Wider than the usual 0.02: the logits of an untrained model must differ visibly.
        initializer_range=0.08,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.do_sample = False
    model.to(dtype).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def make_tiny_checkpoint() -> MakeTiny:
    """``make_tiny_checkpoint(path, dtype=…, seed=…, tied=…)`` writes one and returns its path."""
    return build_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint directory; treat it as read-only."""
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_checkpoint_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights stored as bfloat16; treat it as read-only."""
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "bf16", dtype=torch.bfloat16)


@pytest.fixture
def tiny_model(tiny_checkpoint: Path) -> PreTrainedModel:
    """A fresh stock model of ``tiny_checkpoint`` in float32, in evaluation mode."""
    return LlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_checkpoint: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of ``tiny_checkpoint``."""
    return PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)


def train_by_heart(
    model: PreTrainedModel, encoded: Sequence[Encoded], *, loss: float = 0.01, steps: int = 200
) -> PreTrainedModel:
    """Train every parameter on the completions until their mean token NLL is below ``loss``."""
    model.requires_grad_(True)
    batch = pad(encoded)
    position = torch.arange(1, batch.input_ids.shape[1])
    wanted = (position >= batch.prompt_lengths[:, None]) & (batch.attention_mask[:, 1:] == 1)
    targets = batch.input_ids[:, 1:][wanted]
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        found = torch.nn.functional.cross_entropy(logits[wanted], targets)
        found.backward()
        optimiser.step()
        if found < loss:
            break
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def memorise() -> Memorise:
    """``memorise(model, encoded, loss=0.01, steps=200)`` trains a model and returns it."""
    return train_by_heart


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The INT4 base of ``tiny_checkpoint`` without streams; treat it as read-only."""
    out = tmp_path_factory.mktemp("tiny") / "base"
    return quantize(tiny_checkpoint, out, method="mse").path


@pytest.fixture
def own_base(tmp_path: Path, tiny_base: Path) -> Path:
    """A copy of ``tiny_base`` that a test may write streams into."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def random_layer(
    shape: tuple[int, int], kind: str = "csr", seed: int = 0, density: float = 0.02
) -> Layer:
    """A layer large enough to change what a tiny model says; ``lowrank`` has rank 4."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    if kind == "dense":
        return DenseLayer((0.05 * torch.randn(shape, generator=generator)).half())
    if kind == "csr":
        mask = torch.rand(shape, generator=generator) < density
        return csr_from_dense(0.5 * torch.randn(shape, generator=generator), mask)
    a = torch.randn(4, columns, generator=generator)
    b = torch.randn(rows, 4, generator=generator)
    return LowRankLayer(a, b, scaling=0.02)


@pytest.fixture(scope="session")
def make_layer() -> Callable[..., Layer]:
    """``make_layer(shape, kind="csr", seed=0, density=0.02)``: one random layer."""
    return random_layer


@pytest.fixture(scope="session")
def make_layers(tiny_base: Path) -> MakeLayers:
    """``make_layers(kind="csr", seed=0, density=0.02)``: random layers for every linear."""
    shapes = BaseStream.open(tiny_base).layers

    def make(kind: str = "csr", seed: int = 0, density: float = 0.02) -> dict[str, Layer]:
        return {
            name: random_layer(shape, kind, seed * 1000 + place, density)
            for place, (name, shape) in enumerate(shapes.items())
        }

    return make


@pytest.fixture(autouse=True)
def closed_gate() -> Iterator[None]:
    """No test may leave a gate open for the next one."""
    yield
    assert gate._ambient.get() == 0.0
    assert gate.current() is None
