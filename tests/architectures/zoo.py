"""Two-layer random checkpoints of the architectures that libortho is tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

VOCABULARY, CONTEXT, WIDTH, HEADS, BLOCKS = 512, 128, 128, 2, 2

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    # Wider than the usual 0.02: the logits of an untrained model must differ visibly.
    "initializer_range": 0.08,
}
_GEMMA = {
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
_MOE = {"head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 1, "sliding_window": 16}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 64, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", _GEMMA),
    "gemma3": ("Gemma3TextConfig", _GEMMA),
    "gemma3-vision": ("Gemma3Config", {}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {}),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "opt": (
        "OPTConfig",
        {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH, "init_std": 0.08},
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3MoeConfig", _MOE),
}


def build(name: str, path: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Path:
    """Write the checkpoint of one architecture in float32, biases not zero, with a tokenizer."""
    kind, own = CONFIGS[name]
    config = (
        _vision_config()
        if name == "gemma3-vision"
        else getattr(transformers, kind)(**{**_COMMON, **own})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                nn.init.normal_(parameter, std=0.05)
    model.generation_config.do_sample = False
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _vision_config() -> transformers.Gemma3Config:
    return transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**{**_COMMON, **_GEMMA}),
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            # As many as the text has: the vision blocks must not be taken for decoder blocks.
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": HEADS,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=511,
        boi_token_index=510,
        eoi_token_index=509,
    )
