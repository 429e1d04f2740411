"""A base of every architecture, and what stock transformers says of all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from torch import Tensor

from libortho.quantize import quantize
from libortho.streams.ortho import STREAM_FOLDER
from libortho.streams.ortho_writer import write_stream

# One process for all of them: importing transformers costs more than the models do.
STOCK = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
source, out, *bases = sys.argv[1:]
ids = load_file(source)["ids"]
logits = {}
for path in bases:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if "experts" in name:  # left in the dtype of their scales, whatever is asked for
            parameter.data = parameter.data.float()
    with torch.no_grad():
        logits[path] = model(input_ids=ids).logits.contiguous()
assert not [name for name in sys.modules if name.split(".")[0] == "libortho"]
save_file(logits, out)
"""


@pytest.fixture(scope="session")
def ids() -> Tensor:
    """Three sequences of 20 tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, zoo.VOCABULARY - 3, (3, 20), generator=generator)


@pytest.fixture(scope="session")
def publics(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> dict[str, Path]:
    """The public checkpoints by architecture; treat them as read-only."""
    folder = tmp_path_factory.mktemp("publics")
    return {name: zoo.build(name, folder / name, tiny_tokenizer) for name in zoo.CONFIGS}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, publics, make_layer) -> dict[str, Path]:
    """Their INT4 bases, a private stream beside each; treat them as read-only."""
    folder = tmp_path_factory.mktemp("bases")
    found = {}
    for name, public in publics.items():
        base = quantize(public, folder / name, method="mse")
        write_stream(
            base.path / STREAM_FOLDER / "private",
            name="private",
            base_id=base.id,
            public=False,
            method="tune",
            guarantee="exact",
            layers=[(path, make_layer(shape)) for path, shape in base.layers.items()],
        )
        found[name] = base.path
    return found


@pytest.fixture(scope="session")
def stock_logits(
    tmp_path_factory: pytest.TempPathFactory, bases: dict[str, Path], ids: Tensor
) -> dict[str, Tensor]:
    """Logits of every base in a process that never imports libortho."""
    folder = tmp_path_factory.mktemp("stock")
    save_file({"ids": ids}, folder / "ids.safetensors")
    command = [sys.executable, "-c", STOCK, str(folder / "ids.safetensors"), str(folder / "out")]
    command += [str(path) for path in bases.values()]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    found = load_file(folder / "out")
    return {name: found[str(path)] for name, path in bases.items()}
