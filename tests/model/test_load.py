"""Loading, attaching and moving a model: what is refused, and what never changes."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from libortho import gate
from libortho.errors import CheckpointError, ConfigError, CorruptStream, FormatError, PairMismatch
from libortho.gate import StreamInfo
from libortho.linear import OrthoLinear
from libortho.model import attach, attach_layers, detach, linear, linears, load, ortho
from libortho.quantize import quantize
from libortho.streams.base import BaseStream
from libortho.streams.ortho import OrthoStream
from libortho.streams.ortho_writer import write_stream

REPAIR = StreamInfo("repair", "id-repair", public=True)


def logits(model, ids, alpha=0.0):
    with torch.no_grad(), gate.alpha(alpha):
        return model(input_ids=ids).logits


def write(base: Path, layers, name: str = "private", **options) -> OrthoStream:
    settings = {"base_id": BaseStream.open(base).id, "public": False, **options}
    return write_stream(
        base / "ortho" / name,
        name=name,
        method="test",
        guarantee="none",
        layers=layers.items(),
        **settings,
    )


def formats(model) -> dict[str, torch.Tensor]:
    """Everything whose number format is part of the format, by name."""
    found = {}
    for name, module in linears(model).items():
        for part, tensor in module.state_dict().items():
            if part != "bias":
                found[f"{name}.{part}"] = tensor.clone()
    return found


def test_the_weights_are_those_of_the_base(tiny_base: Path, tiny_model, model, ids) -> None:
    """A stock model given the dequantised weights says the same, to fp32 rounding."""
    base = BaseStream.open(tiny_base)
    for name, shape in base.layers.items():
        assert torch.equal(linear(model, name).weight, base.weight(name))
        assert linear(model, name).base.shape == shape
        tiny_model.get_submodule(name).weight.data = base.weight(name)
    assert len(linears(model)) == 14
    with torch.no_grad():
        expected = tiny_model(input_ids=ids).logits
    # Sums of at most 256 products in another order, two blocks deep; logits below 10.
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.generation_config.do_sample is False


@pytest.mark.parametrize("change", ["bfloat16", "half", "float"])
def test_a_change_of_dtype_leaves_codes_scales_and_values_alone(
    tiny_base: Path, ids, attach_random, change: str
) -> None:
    model = load(tiny_base, dtype=torch.bfloat16 if change == "float" else torch.float32)
    attach_random(model, kind="lowrank", seed=1)
    attach_random(model, REPAIR, "csr", seed=2)
    before = formats(model)
    for dtype in (None, getattr(torch, change)):
        model = getattr(model, change)() if dtype is None else model.to(dtype)
        after = formats(model)
        assert after.keys() == before.keys()
        for name, tensor in after.items():
            assert tensor.dtype == before[name].dtype, name
            assert torch.equal(tensor, before[name]), name
    assert model.get_input_embeddings().weight.dtype == getattr(torch, change)
    assert bool(torch.isfinite(logits(model, ids, 1)).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_logits_near_those_of_float32(
    tiny_base: Path, model, ids, attach_random, dtype: torch.dtype
) -> None:
    half = load(tiny_base, dtype=dtype)
    for one in (half, model):
        attach_random(one)
    for alpha in (0, 1):
        found, full = logits(half, ids, alpha), logits(model, ids, alpha)
        assert found.dtype == dtype
        assert bool(torch.isfinite(found).all())
        # Activations keep 8 bits; a few roundings a block, none of them systematic.
        error = (found.float() - full).norm() / full.norm()
        assert float(error) < 0.05


def test_a_bfloat16_checkpoint_keeps_its_scales(tmp_path, tiny_checkpoint_bf16, ids) -> None:
    base = quantize(tiny_checkpoint_bf16, tmp_path / "base", method="mse")
    model = load(base.path, dtype=torch.float16)
    for name, module in linears(model).items():
        assert module.base.scales.dtype == torch.bfloat16
        assert torch.equal(module.weight, base.weight(name))
    assert bool(torch.isfinite(logits(model, ids)).all())


def test_a_deep_copy_is_a_model_of_its_own(model, ids, attach_random) -> None:
    attach_random(model)
    closed, opened = logits(model, ids), logits(model, ids, 1)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, ids, 1), opened)
    detach(twin, "private")
    assert torch.equal(logits(model, ids, 1), opened)
    assert torch.equal(logits(twin, ids), closed)
    attach_random(twin, seed=7)
    assert not torch.equal(logits(twin, ids, 1), opened)
    assert torch.equal(logits(model, ids, 1), opened)


def test_a_pickled_model_comes_back_closed_and_whole(model, ids, attach_random) -> None:
    attach_random(model, kind="lowrank")
    attach_random(model, REPAIR, "csr")
    expected = {alpha: logits(model, ids, alpha) for alpha in (0, 0.5, 1)}
    with gate.alpha(1):
        data = pickle.dumps(model)
    back = pickle.loads(data)
    with torch.no_grad():
        assert torch.equal(back(input_ids=ids).logits, expected[0])
    for alpha, found in expected.items():
        assert torch.equal(logits(back, ids, alpha), found)
    detach(back, "repair")
    assert torch.equal(logits(model, ids, 1), expected[1])


def test_streams_are_found_by_name_and_by_path(own_base: Path, tmp_path, ids, make_layers) -> None:
    stream = write(own_base, make_layers())
    by_name = logits(load(own_base, ["private"]), ids, 1)
    elsewhere = shutil.copytree(stream.path, tmp_path / "volume" / "mine")
    shutil.rmtree(own_base / "ortho")
    model = load(own_base, [elsewhere])
    assert torch.equal(logits(model, ids, 1), by_name)
    assert [info.name for info in ortho(model).attached] == ["private"]
    with pytest.raises(FormatError, match="streams of this base: none"):
        load(own_base, ["private"])


def test_an_absent_stream_is_an_error_that_lists_those_there_are(own_base, make_layers) -> None:
    write(own_base, make_layers())
    with pytest.raises(FormatError, match=r"'tenant'.*streams of this base: private"):
        load(own_base, ["tenant"])


def test_requirements_on_disk_reach_the_gate(own_base: Path, ids, make_layers) -> None:
    repair = write(own_base, make_layers(seed=1), "repair", public=True)
    write(own_base, make_layers(seed=2), requires=[repair.id])
    model = load(own_base, ["private", "repair"])
    logits(model, ids, 1)
    with pytest.raises(gate.AlphaError, match="'private' was made with public streams open"):
        logits(model, ids, {"private": 1})
    assert torch.equal(
        logits(model, ids, {"repair": 1}), logits(load(own_base, ["repair"]), ids, 1)
    )


def test_a_stream_of_another_base_is_refused(own_base: Path, model, make_layers) -> None:
    write(own_base, make_layers(), base_id="0" * 64)
    with pytest.raises(PairMismatch, match=r"belongs to base 000000000000….*load it with the base"):
        load(own_base, ["private"])
    with pytest.raises(PairMismatch):
        attach(model, own_base / "ortho" / "private")
    assert not ortho(model).attached


def test_layers_that_the_base_lacks_are_refused_together(own_base, make_layers, make_layer) -> None:
    layers = make_layers()
    first, second = list(layers)[:2]
    layers[first] = make_layer((128, 256))
    layers["model.layers.7.mlp.up_proj"] = layers.pop(second)
    write(own_base, layers)
    with pytest.raises(PairMismatch) as caught:
        load(own_base, ["private"])
    assert first in str(caught.value)
    assert "model.layers.7.mlp.up_proj" in str(caught.value)


@pytest.mark.parametrize("wrong", ["unknown layer", "wrong shape", "broken csr"])
def test_attaching_is_all_or_nothing(model, ids, make_layers, make_layer, wrong: str) -> None:
    before = logits(model, ids)
    layers = make_layers()
    last = list(layers)[-1]
    if wrong == "unknown layer":
        layers["model.norm"] = layers[last]
    elif wrong == "wrong shape":
        layers[last] = make_layer((128, 128))
    else:
        layers[last].indices.neg_()
    info = StreamInfo("private", "id", public=False)
    with pytest.raises((ConfigError, CorruptStream)):
        attach_layers(model, info, layers)
    assert not ortho(model).attached
    assert not any(module.streams for module in linears(model).values())
    assert torch.equal(logits(model, ids), before)
    attach_layers(model, info, make_layers())


def test_names_are_taken_once_and_freed_by_detaching(model, attach_random) -> None:
    attach_random(model)
    with pytest.raises(ConfigError, match="'private' is attached already"):
        attach_random(model)
    detach(model, "private")
    with pytest.raises(ConfigError, match="'private' is not attached; attached: none"):
        detach(model, "private")
    attach_random(model)
    with pytest.raises(ConfigError, match=r"'no\.dots'"):
        attach_random(model, StreamInfo("no.dots", "id", public=False))


def test_other_models_and_layers_are_named(tiny_model, model, ids) -> None:
    with pytest.raises(ConfigError, match="was not made by libortho"):
        ortho(tiny_model)
    with pytest.raises(ConfigError, match="lm_head is Linear"):
        linear(model, "lm_head")
    assert isinstance(linear(model, "model.layers.0.mlp.up_proj"), OrthoLinear)


def test_a_converted_model_is_not_saved_by_transformers(model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="copy the base directory, which holds the streams"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_no_base_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(FormatError, match=r"no libortho\.json"):
        load(tiny_checkpoint)
    for absent in (tmp_path / "nosuch", Path("reference")):
        with pytest.raises(CheckpointError, match=f"{absent} is not a directory. Expected a base"):
            load(absent)


def test_one_name_is_no_list_of_streams(tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match=r'streams: expected a list, .* \["private"\]'):
        load(tiny_base, "private")


def test_loading_changes_no_byte(own_base: Path, ids, make_layers) -> None:
    write(own_base, make_layers())

    def state():
        return {f: f.read_bytes() for f in sorted(own_base.rglob("*")) if f.is_file()}

    before = state()
    model = load(own_base, ["private"])
    logits(model, ids, 1)
    model.bfloat16()
    assert state() == before
    assert BaseStream.open(own_base).verify() == []
