"""The trained weights as the checkpoint directory that is shipped."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from .tokenizer import write_tokenizer


def export(
    config: LlamaConfig, weights: dict[str, Tensor], tokenizer: Tokenizer, folder: Path
) -> str:
    """Write a stock bf16 checkpoint with its tokenizer; return the sha256 of the weights' file.

    Every file is replaced in one step; other files of the folder stay.
    """
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, do_sample=False
    )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    write_tokenizer(tokenizer, partial, config.max_position_embeddings)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(partial.iterdir()):
        os.replace(path, folder / path.name)
    partial.rmdir()
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
