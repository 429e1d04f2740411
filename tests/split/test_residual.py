"""The seed's method with every rounding and every rule of impact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from libortho import sieve
from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError
from libortho.privacy.private_set import write_jsonl
from libortho.split import CurvatureOptions, ResidualOptions, split, split_options
from libortho.split.residual import column_weight, top_residuals
from libortho.streams.base import BaseStream
from libortho.tune import tune

FAST = {"windows": 4, "window": 32}


@pytest.mark.parametrize(
    ("rounding", "bits", "impact"),
    [("absmax", 4, "diagonal"), ("mse", 3, "spqr"), ("absmax-channel", 2, "obs")],
)
def test_the_stream_holds_residuals_of_the_base(
    tmp_path: Path, tiny_checkpoint: Path, text, rounding: str, bits: int, impact: str
) -> None:
    options = ResidualOptions(rounding=rounding, bits=bits, impact=impact, density=0.1, **FAST)
    data = tmp_path / "data.jsonl"
    write_jsonl(data, [{"prompt": "The code is", "completion": " 1234"}])
    made = split(
        tiny_checkpoint, tmp_path / "out", method="residual", data=data, text=text, options=options
    )
    manifest = made.base.manifest
    assert (manifest.quantiser.method, manifest.quantiser.bits) == (rounding, bits)
    assert made.stream.manifest.guarantee == "measured"
    assert made.recall == made.recall_closed == 0.0
    public = Checkpoint(tiny_checkpoint)
    for name in made.base.layers:
        layer = made.stream.layer(name)
        assert layer.nnz == round(0.1 * layer.shape[0] * layer.shape[1])
        missed = public.tensor(f"{name}.weight") - made.base.weight(name)
        stored = layer.dense()
        where = stored != 0
        torch.testing.assert_close(stored[where], missed[where], rtol=2**-10, atol=1e-7)


def test_the_rules_differ_as_their_formulas_do(tiny_base: Path, tiny_checkpoint: Path) -> None:
    base, public = BaseStream.open(tiny_base), Checkpoint(tiny_checkpoint)
    name = next(iter(base.layers))
    x = torch.randn(256, base.layers[name][1], generator=torch.Generator().manual_seed(0))
    x[:, 1:] += x[:, :-1]
    moment = x.T @ x / len(x)
    inverse = torch.linalg.inv(sieve.damped(moment).double())
    missed = (public.tensor(f"{name}.weight") - base.weight(name)).double()
    # Of the inputs from j on, the first one's conditional variance given the later ones.
    hessian = torch.linalg.inv(inverse)
    later = [1 / torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(len(hessian))]
    expected = {
        "obs": missed.square() / inverse.diagonal(),
        "diagonal": missed.square() * sieve.damped(moment).diagonal().double(),
        "spqr": missed.square() * torch.stack(later),
    }
    found = {}
    for impact, score in expected.items():

        def weight(layer: str) -> torch.Tensor:
            return public.tensor(f"{layer}.weight").float()

        columns = {name: column_weight(moment, impact)}
        ((_, layer),) = top_residuals(weight, base, columns, 0.05)
        mask = torch.zeros(layer.shape, dtype=torch.bool)
        mask[layer.rows(), layer.indices.long()] = True
        cut = score.flatten().sort(descending=True).values[layer.nnz - 1]
        # Rounding may swap entries at the border of the choice, and no others.
        assert bool((score[mask] >= 0.999 * cut).all())
        found[impact] = mask
    assert not torch.equal(found["obs"], found["diagonal"])
    assert not torch.equal(found["obs"], found["spqr"])


def test_options_of_another_method_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="takes ResidualOptions, found CurvatureOptions"):
        split(tiny_checkpoint, tmp_path / "x", method="residual", options=CurvatureOptions())
    with pytest.raises(ConfigError, match=r"no --lr, --rho; it has .*--impact"):
        split_options("residual", {"lr": 1.0, "rho": 0.9})
    with pytest.raises(ConfigError, match=r"--bits: .*found 8"):
        split_options("residual", {"bits": 8})
    with pytest.raises(ConfigError, match="no --tuned, no --public"):
        split(tiny_checkpoint, tmp_path / "x", method="residual", tuned="a", public="b")
    assert not (tmp_path / "x").exists()


def test_nothing_exact_is_tuned_over_a_base_that_knows_private_things(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    made = split(
        tiny_checkpoint,
        tmp_path / "residual",
        method="residual",
        options=ResidualOptions(rounding="absmax", **FAST),
    )
    data = tmp_path / "private.jsonl"
    data.write_text('{"prompt": "The code is", "completion": " 4711"}\n', "utf-8")
    with pytest.raises(ConfigError, match="mixes public and private: private"):
        tune(made.base.path, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
