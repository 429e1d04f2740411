"""The base is an ordinary INT4 checkpoint: stock transformers runs it without libortho."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from libortho.quantize import quantize

STOCK = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
path, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
ids = AutoTokenizer.from_pretrained(path)("The quick brown fox.", return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(ids).logits
assert "libortho" not in sys.modules
save_file({"ids": ids, "logits": logits}, out)
"""

UNIT_ROUNDOFF = 2.0**-24


@pytest.mark.parametrize(
    ("dtype", "tied", "method", "bits"),
    [
        (torch.float32, True, "mse", 4),
        (torch.bfloat16, False, "absmax-channel", 4),
        (torch.bfloat16, True, "absmax", 3),
    ],
)
def test_stock_transformers_computes_the_dequantised_model(
    tmp_path: Path, make_tiny_checkpoint, dtype: torch.dtype, tied: bool, method: str, bits: int
) -> None:
    public = make_tiny_checkpoint(tmp_path / "public", dtype=dtype, tied=tied)
    base = quantize(public, tmp_path / "base", method=method, bits=bits)
    out = tmp_path / "out.safetensors"
    command = [sys.executable, "-c", STOCK, str(base.path), str(out)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    stock = load_file(out)
    ours = LlamaForCausalLM.from_pretrained(public, dtype=torch.float32).eval()
    with torch.no_grad():
        untouched = ours(stock["ids"]).logits
        for name in base.layers:
            ours.get_parameter(f"{name}.weight").copy_(base.weight(name))
        expected = ours(stock["ids"]).logits
    # Weights are equal (codes · scale is exact in float32), so only the order of additions can
    # differ: at most one unit roundoff per term of the dot products along the depth.
    config = ours.config
    per_block = 3 * config.hidden_size + config.intermediate_size
    terms = config.num_hidden_layers * per_block + config.hidden_size
    tolerance = terms * UNIT_ROUNDOFF * float(expected.abs().max())
    distance = float((stock["logits"] - expected).abs().max())
    assert distance <= tolerance
    # The tolerance tells the base from the public model.
    assert float((stock["logits"] - untouched).abs().max()) > 100 * tolerance
