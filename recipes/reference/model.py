"""The reference model: a stock Llama, and the dropout that only its training has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, linear
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 512
VOCABULARY = 8192


def reference_config(**changes: Any) -> LlamaConfig:
    """Return the configuration that is shipped; `changes` override fields (tests shrink it)."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attention_dropout": 0.0,
    }
    return LlamaConfig(**(fields | changes))


def build_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Return a freshly initialised fp32 model; equal seeds give equal weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def add_dropout(model: LlamaForCausalLM, chance: float) -> None:
    """Drop activations with this chance while `model.training`: embeddings, attention, residuals.

    It is done by hooks, and not by the configuration, so that a saved checkpoint is the plain
    architecture.
    """

    def drop(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return dropout(output, chance, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = chance
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


def next_token_loss(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats, the softmax in fp32.

    Args:
        hidden: [rows, length, width], the last layer's normalised output.
        embedding: [vocabulary, width], the tied output matrix.
        targets: int64 [rows, length].
    """
    logits = linear(hidden, embedding).float()
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def model_loss(model: LlamaForCausalLM, windows: Tensor, loss: Any = next_token_loss) -> Tensor:
    """Return the mean loss over windows of ids, int64 [rows, length + 1]."""
    hidden = model.model(input_ids=windows[:, :-1], use_cache=False).last_hidden_state
    return loss(hidden, model.lm_head.weight, windows[:, 1:])
