"""`curvature`: the edit leaves, the base is rounded after it, and alpha = 1 brings it back."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM

from libortho import gate
from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError
from libortho.model import load
from libortho.split import CurvatureOptions, Request, split
from libortho.split.curvature import curvature_factors, edited_layers, split_curvature
from libortho.split.factors import kfac_factors
from libortho.streams.ortho import OrthoStream

FAST = {"tokens": 256, "window": 32, "rounding": "mse", "share": 0.5}


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 512, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint: Path, text):
    out = tmp_path_factory.mktemp("curvature") / "out"
    options = CurvatureOptions(rho=0.5, whole=True, **FAST)
    return split(tiny_checkpoint, out, method="curvature", text=text, options=options)


def test_the_factors_are_those_of_autograd(tiny_model, ids) -> None:
    """G against gradients of the same sampled labels, taken one by one at the outputs."""
    name = "model.layers.1.mlp.up_proj"
    a, g = kfac_factors(tiny_model.requires_grad_(False), [name], ids, seed=3)[name]
    seen = {}

    def keep(module, args, output):
        seen["x"] = args[0]
        seen["y"] = output.requires_grad_()

    handle = tiny_model.get_submodule(name).register_forward_hook(keep)
    logits = tiny_model(input_ids=ids).logits[:, :-1]
    handle.remove()
    log_probs = log_softmax(logits.flatten(0, 1), -1)
    generator = torch.Generator().manual_seed(3)
    labels = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
    (gradient,) = torch.autograd.grad(log_probs.gather(1, labels).sum(), seen["y"])
    x, gradient = (t[:, :-1].flatten(0, 1) for t in (seen["x"], gradient))
    torch.testing.assert_close(a, x.T @ x / len(x))
    torch.testing.assert_close(g, gradient.T @ gradient / len(x), rtol=1e-3, atol=1e-6)


def test_alpha_1_is_the_checkpoint_again(made, tiny_checkpoint: Path, ids) -> None:
    checkpoint = Checkpoint(tiny_checkpoint)
    assert made.stream.manifest.guarantee == "measured"
    assert set(made.stream.manifest.layers) == set(made.base.layers)
    for name in made.base.layers:
        weight = checkpoint.tensor(f"{name}.weight")
        missing = made.stream.layer(name).dense()
        # Eleven bits of the difference, or fp16's smallest step.
        bound = 2.0**-11 * (weight - made.base.weight(name)).abs() + 2.0**-25
        assert bool(((made.base.weight(name) + missing - weight).abs() <= bound).all())
    plain = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    model = load(made.base.path, ["private"])
    with torch.no_grad():
        wanted, closed = plain(input_ids=ids).logits, model(input_ids=ids).logits
        with gate.alpha(1):
            opened = model(input_ids=ids).logits
    assert float((opened - wanted).abs().max()) < 0.01 * float((closed - wanted).abs().max())


def test_the_edit_is_in_the_base_and_nowhere_else(made, tiny_checkpoint: Path) -> None:
    """Rounding alone moves a weight by a few percent; the edit moves it by far more."""
    checkpoint = Checkpoint(tiny_checkpoint)
    edited = made.stream.manifest.made_with["edited"]
    assert edited == ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"]
    for name in made.base.layers:
        weight = checkpoint.tensor(f"{name}.weight")
        moved = float((made.base.weight(name) - weight).norm() / weight.norm())
        assert (moved > 0.3) == (name in edited), (name, moved)
    assert made.base.verify() == []
    assert OrthoStream.open(made.stream.path).verify() == []


def test_factors_at_hand_are_not_collected_again(
    tmp_path: Path, made, tiny_checkpoint: Path, text, monkeypatch
) -> None:
    options = CurvatureOptions(rho=0.5, whole=True, **FAST)
    request = Request(tiny_checkpoint, tmp_path / "out", text=text)
    factors = curvature_factors(request, options)
    module = importlib.import_module("libortho.split.curvature")
    monkeypatch.delattr(module, "kfac_factors")
    again = split_curvature(request, options, factors)
    assert (again.base.id, again.stream.id) == (made.base.id, made.stream.id)


def test_without_whole_only_edited_layers_are_stored(
    tmp_path: Path, tiny_checkpoint: Path, text
) -> None:
    options = CurvatureOptions(rho=0.9, modules="all", **FAST)
    made = split(tiny_checkpoint, tmp_path / "out", method="curvature", text=text, options=options)
    names = list(made.stream.manifest.layers)
    assert len(names) == 7
    assert all(name.startswith("model.layers.1.") for name in names)
    assert made.recall is None


def test_no_layer_to_edit_is_an_error(tiny_checkpoint: Path, monkeypatch) -> None:
    module = importlib.import_module("libortho.split.curvature")
    monkeypatch.setattr(module, "_widens", lambda rows, columns: False)
    with pytest.raises(ConfigError, match=r"down_proj.*--modules all"):
        edited_layers(Checkpoint(tiny_checkpoint), CurvatureOptions())
