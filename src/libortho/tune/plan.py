"""What a tune would hold in memory at its peak, from headers and options alone."""

from __future__ import annotations

from pathlib import Path

from libortho.checkpoint import Checkpoint, linear_layers
from libortho.privacy.private_set import PrivateSet
from libortho.streams.base import BaseStream
from libortho.tune.fisher import BUDGET_BYTES as FISHER_BYTES
from libortho.tune.options import TuneOptions
from libortho.tune.prepare import is_base
from libortho.tune.replay import CACHE_BYTES

_GROUP = 128
_FP32 = 4


def peak(source: str | Path, private: PrivateSet, options: TuneOptions) -> dict[str, int]:
    """Bytes by purpose, and their sum under ``peak_bytes``; upper estimates."""
    checkpoint = Checkpoint(source)
    layers = (
        BaseStream.open(source).layers
        if is_base(source)
        else linear_layers(checkpoint.skeleton(), _GROUP, checkpoint.naming)[0]
    )
    weights = sum(n * k for n, k in layers.values())
    config = checkpoint.config.get_text_config()
    others = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    values = round(weights * options.density)
    tokens = options.replay_batch * options.replay_window
    logits = tokens * config.vocab_size * _FP32
    width = config.hidden_size * config.num_hidden_layers
    pool = options.replay_pool * options.replay_window * config.vocab_size * 2
    needs = {
        "examples": len(private.examples),
        "trained_values": values,
        "base_bytes": weights // 2 + 2 * weights // _GROUP + others * _FP32,
        # CSR and tiles, the fp32 values, their gradient and Adam's two moments.
        "stream_and_optimiser_bytes": values * (8 + 8 + 4 * _FP32),
        "fisher_bytes": min(2 * weights * _FP32, 2 * FISHER_BYTES),
        "teacher_bytes": weights * _FP32 + others * _FP32 + min(pool, CACHE_BYTES),
        "activation_bytes": 3 * logits + 16 * tokens * width * _FP32,
    }
    needs["peak_bytes"] = sum(size for name, size in needs.items() if name.endswith("_bytes"))
    return needs
