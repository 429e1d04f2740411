"""A real privately tuned model: peft LoRA until it recites, then merged in full precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from libortho.checkpoint import Checkpoint, resolve
from libortho.privacy.encode import Encoded
from libortho.progress import Progress, silent
from libortho.tune.options import TuneOptions, tune_options
from libortho.tune.prepare import plain_model
from libortho.tune.replay import Replay
from libortho.tune.train import Trained, train

LORA_OPTIONS = tune_options(steps=300, lr=2e-3, replay_weight=10.0, settle=10)
RANK = 16
MERGED = "merged"
ADAPTER = "adapter"


def memorise(
    public: str | Path,
    private: Sequence[Encoded],
    replay: Replay,
    out: Path,
    linears: Sequence[str],
    options: TuneOptions = LORA_OPTIONS,
    *,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Trained:
    """Train a LoRA on all converted linears and write ``out/adapter`` and ``out/merged``.

    Args:
        public: the public checkpoint.
        private: what is to be memorised.
        linears: names of the layers that get an adapter.
    """
    model = plain_model(resolve(public), device)
    torch.manual_seed(options.seed)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=list(linears))
    adapted = get_peft_model(model, config)
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    trained = train(
        adapted, parameters, private, replay, options, alpha=0.0, stage="LoRA", progress=progress
    )
    adapted.save_pretrained(out / ADAPTER)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(out / MERGED)
    Checkpoint(public).tokenizer().save_pretrained(out / MERGED)
    return trained
