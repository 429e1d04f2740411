"""Twenty-four canaries in a private stream of a tiny base, and by heart in a plain checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from libortho.privacy.attacks.subject import Budget
from libortho.privacy.canaries import make_canaries
from libortho.privacy.encode import encode
from libortho.tune import tune, tune_options


@dataclass(frozen=True)
class Files:
    """JSONL of both halves."""

    members: Path
    controls: Path


@pytest.fixture(scope="session")
def quick() -> Budget:
    return Budget(candidates=20, sampled=2, beam_width=4, beams=2, relearn_steps=2)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("canaries")
    found = Files(folder / "members.jsonl", folder / "controls.jsonl")
    make_canaries(24, 0).write(found.members, found.controls)
    return found


@pytest.fixture(scope="session")
def tuned(tmp_path_factory, tiny_base: Path, tiny_checkpoint: Path, files: Files) -> Path:
    """A base whose stream `private` recites every member."""
    out = tmp_path_factory.mktemp("audit") / "tuned"
    options = tune_options(
        steps=150,
        density=0.3,
        lr=1e-2,
        replay_weight=0,
        replay_pool=4,
        replay_window=32,
        fisher_windows=2,
        settle=5,
    )
    made = tune(tiny_base, files.members, out, public=tiny_checkpoint, options=options)
    assert made.recall == 1
    return out


@pytest.fixture(scope="session")
def leaking(
    tmp_path_factory, tiny_checkpoint: Path, tiny_tokenizer, files: Files, memorise
) -> Path:
    """A plain checkpoint that recites every member."""
    model = LlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    memorise(model, encode(tiny_tokenizer, make_canaries(24, 0).members), loss=0.02)
    out = tmp_path_factory.mktemp("audit") / "leaking"
    model.save_pretrained(out)
    tiny_tokenizer.save_pretrained(out)
    return out
