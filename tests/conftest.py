"""Tiny stand-ins for a checkpoint: a two-layer Llama and its byte-level tokenizer, built here."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 512
CONTEXT = 128
END = "<|endoftext|>"

MakeTiny = Callable[..., Path]


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
