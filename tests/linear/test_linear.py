"""A linear in streams: its product, its gate and the number formats that never change."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from libortho import gate
from libortho.errors import AlphaError, ConfigError
from libortho.gate import StreamInfo
from libortho.layout import tile_base
from libortho.linear import (
    BaseWeight,
    CsrStream,
    DenseStream,
    LowRankStream,
    OrthoLinear,
    add_gated,
)
from libortho.quantizers import mse
from libortho.streams.layers import CsrLayer, LowRankLayer

SHAPE = (96, 256)
GROUP = 64
KINDS = ("csr", "lowrank", "dense")
ONE = StreamInfo("private", "id-private", public=False)
BOTH = [StreamInfo("repair", "id-repair", public=True), ONE]


def make_linear(attached, bias: bool = False, scale_dtype=torch.float16) -> OrthoLinear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=generator)
    base = BaseWeight(tile_base(*mse(weight, GROUP, scale_dtype=scale_dtype), GROUP))
    return OrthoLinear(base, torch.randn(SHAPE[0], generator=generator) if bias else None, attached)


def inputs(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, SHAPE[1], generator=generator).to(dtype)


def poison(linear: OrthoLinear, name: str, value: float) -> None:
    stream = linear.streams[name]
    with torch.no_grad():
        for tensor in (stream.values,) if isinstance(stream, CsrStream) else stream.parameters():
            tensor.fill_(value)


@pytest.mark.parametrize("rows", [1, 5, 40, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_is_the_product_with_the_dense_sum(
    make_layer, rows: int, dtype: torch.dtype
) -> None:
    linear = make_linear(BOTH, bias=True)
    csr = make_layer(SHAPE, "csr", seed=1)
    factors = make_layer(SHAPE, "lowrank", seed=2)
    linear.attach("repair", csr)
    linear.attach("private", factors)
    x = inputs(rows, dtype)
    with gate.alpha({"repair": 0.5, "private": 0.75}):
        found = linear(x).double()
    low = factors.scaling * (factors.b.double() @ factors.a.double())
    terms = [(1.0, linear.weight.double()), (0.5, csr.dense().double()), (0.75, low)]
    x, bias = x.double(), linear.bias.double()
    exact = sum(alpha * x @ weight.T for alpha, weight in terms) + bias
    magnitude = sum(alpha * x.abs() @ weight.abs().T for alpha, weight in terms) + bias.abs()
    # The factors' own product passes through magnitudes |x||a||b|, larger than |x||ba|.
    through = x.abs() @ factors.a.double().abs().T @ factors.b.double().abs().T
    magnitude += 0.75 * factors.scaling * through
    # A sum of n terms in fp32 errs by at most n 2^-24 of its magnitude; n counts K products of the
    # base, at most K of each stream, the rank, and ten roundings of scalings and partial sums.
    terms_summed = 3 * SHAPE[1] + 4 + 10
    bound = terms_summed * 2.0**-24 * magnitude
    if dtype == torch.bfloat16:
        # The op's result, the factors' part, their sum and the bias' are each rounded to 8 bits.
        bound += 4 * 2.0**-8 * magnitude
    assert bool(((found - exact).abs() <= bound).all())
    if dtype == torch.float32:
        assert float(bound.max()) < 1e-2 * float(exact.abs().max())


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
def test_the_base_holds_the_codes_and_scales_given(scale_dtype: torch.dtype) -> None:
    codes, scales = mse(torch.randn(SHAPE), GROUP, scale_dtype=scale_dtype)
    base = BaseWeight(tile_base(codes, scales, GROUP))
    expected = codes * scales.float().repeat_interleave(GROUP, dim=1)
    assert torch.equal(base.dequantised(), expected)
    assert torch.equal(OrthoLinear(base, None, []).weight, expected)
    assert base.scales.dtype == scale_dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rows", [1, 4, 300])
def test_a_closed_stream_may_hold_anything(make_layer, kind: str, value: float, rows: int) -> None:
    linear = make_linear([ONE], bias=True)
    x = inputs(rows)
    before = linear(x)
    linear.attach("private", make_layer(SHAPE, kind))
    assert torch.equal(linear(x), before)
    poison(linear, "private", value)
    assert torch.equal(linear(x), before)
    with gate.alpha(1):
        assert not bool(torch.isfinite(linear(x)).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [2, 4, 33, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_feel_the_alpha_of_others(
    make_layer, kind: str, rows: int, dtype: torch.dtype
) -> None:
    linear = make_linear([ONE])
    linear.attach("private", make_layer(SHAPE, kind))
    x = inputs(rows, dtype)
    settings = {value: linear_at(linear, x, [value] * rows) for value in (0.0, 0.5, 1.0)}
    pattern = [(0.0, 1.0, 1.0, 0.5, 0.0)[row % 5] for row in range(rows)]
    for mixed in (pattern, pattern[::-1], [1.0] + [0.0] * (rows - 1)):
        together = linear_at(linear, x, mixed)
        for row, value in enumerate(mixed):
            assert torch.equal(together[row], settings[value][row]), (row, mixed)
    assert not torch.equal(settings[0.0], settings[1.0])


@pytest.mark.parametrize("kind", KINDS)
def test_closed_rows_beside_open_ones_do_not_read_the_stream(make_layer, kind: str) -> None:
    linear = make_linear([ONE])
    x = inputs(6)
    closed = linear(x)
    linear.attach("private", make_layer(SHAPE, kind))
    poison(linear, "private", math.nan)
    mixed = linear_at(linear, x, [0, 1, 0, 0, 1, 0])
    assert torch.equal(mixed[[0, 2, 3, 5]], closed[[0, 2, 3, 5]])
    assert bool(torch.isnan(mixed[[1, 4]]).any(1).all())


def linear_at(linear: OrthoLinear, x: Tensor, alpha: list[float]) -> Tensor:
    with gate.alpha(alpha):
        return linear(x)


def test_two_streams_are_opened_one_by_one(make_layer) -> None:
    linear = make_linear(BOTH)
    linear.attach("private", make_layer(SHAPE, "lowrank", seed=1))
    linear.attach("repair", make_layer(SHAPE, "csr", seed=2))
    x = inputs(4)
    for opened, closed in (("private", "repair"), ("repair", "private")):
        alone = copy.deepcopy(linear)
        alone.detach(closed)
        poisoned = copy.deepcopy(linear)
        poison(poisoned, closed, math.nan)
        with gate.alpha({opened: 0.5}):
            assert torch.equal(poisoned(x), alone(x))


def test_leading_dimensions_are_kept_and_sequences_lead(make_layer) -> None:
    linear = make_linear([ONE])
    linear.attach("private", make_layer(SHAPE))
    x = inputs(12).reshape(2, 6, -1)
    with gate.alpha([0, 1]):
        found = linear(x)
    assert found.shape == (2, 6, SHAPE[0])
    flat = linear_at(linear, x.reshape(12, -1), [0.0] * 6 + [1.0] * 6)
    assert torch.equal(found.reshape(12, -1), flat)
    assert linear(inputs(12)[:0]).shape == (0, SHAPE[0])


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_change_of_dtype_leaves_the_stored_formats_alone(
    make_layer, change: str, trained: bool
) -> None:
    linear = make_linear(BOTH, bias=True)
    linear.attach("repair", make_layer(SHAPE, "csr", seed=1))
    linear.attach("private", make_layer(SHAPE, "lowrank", seed=2))
    if trained:
        linear.streams["repair"].trainable()
    kept = {n: t.clone() for n, t in linear.state_dict().items() if n != "bias"}
    getattr(linear, change)()
    after = {n: t for n, t in linear.state_dict().items() if n != "bias"}
    assert after.keys() == kept.keys()
    for name, tensor in after.items():
        assert tensor.dtype == kept[name].dtype, name
        assert torch.equal(tensor, kept[name]), name
    assert linear.bias.dtype != torch.float32


def test_what_was_attached_comes_back_for_the_disk(make_layer) -> None:
    linear = make_linear(BOTH)
    csr = make_layer(SHAPE, "csr", seed=1)
    factors = make_layer(SHAPE, "lowrank", seed=2)
    linear.attach("repair", csr)
    linear.attach("private", factors)
    linear.bfloat16()
    found = linear.streams["repair"].layer()
    for part in ("indptr", "indices", "values"):
        assert torch.equal(getattr(found, part), getattr(csr, part))
        assert getattr(found, part).dtype == getattr(csr, part).dtype
    assert found.shape == csr.shape
    back = linear.streams["private"].layer()
    assert torch.equal(back.a, factors.a)
    assert torch.equal(back.b, factors.b)
    assert back.scaling == factors.scaling


def test_trained_values_keep_their_support_and_are_rounded_as_stored(make_layer) -> None:
    stream = CsrStream(make_layer(SHAPE))
    before = stream.layer()
    values = stream.trainable()[0]
    assert stream.trainable()[0] is values
    assert values.dtype == torch.float32
    with torch.no_grad():
        values.add_(1 / 3)
    assert torch.equal(stream.csr_values(), before.values.float() + 1 / 3)
    stream.freeze()
    assert not list(stream.parameters())
    after = stream.layer()
    assert torch.equal(after.indices, before.indices)
    assert torch.equal(after.values, (before.values.float() + 1 / 3).half())
    assert stream.tile_values().dtype == torch.float16


def test_a_trained_difference_is_rounded_as_stored(make_layer) -> None:
    stream = DenseStream(make_layer(SHAPE, "dense"))
    before = stream.layer().delta
    (delta,) = stream.trainable()
    assert delta.dtype == torch.float32
    with torch.no_grad():
        delta.add_(1 / 3)
    stream.freeze()
    assert not any(parameter.requires_grad for parameter in stream.parameters())
    assert torch.equal(stream.layer().delta, (before.float() + 1 / 3).half())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_dense_sum(make_layer, kind: str) -> None:
    linear = make_linear([ONE])
    layer = make_layer(SHAPE, kind)
    linear.attach("private", layer)
    parameters = linear.part("private").trainable()
    x, weights = inputs(6).requires_grad_(), torch.randn(6, SHAPE[0])
    with gate.alpha([0, 1, 0.5, 0, 1, 0.25]):
        (linear(x) * weights).sum().backward()
    alpha = torch.tensor([0, 1, 0.5, 0, 1, 0.25])[:, None]
    plain = x.detach().clone().requires_grad_()
    if kind == "csr":
        values = layer.values.float().requires_grad_()
        dense = torch.zeros(SHAPE).index_put((layer.rows(), layer.indices.long()), values)
        expected = [values]
    elif kind == "dense":
        dense = layer.dense().requires_grad_()
        expected = [dense]
    else:
        expected = [layer.a.clone().requires_grad_(), layer.b.clone().requires_grad_()]
        dense = layer.scaling * expected[1] @ expected[0]
    y = plain @ linear.weight.T + alpha * (plain @ dense.T)
    (y * weights).sum().backward()
    for one, other in zip([x, *parameters], [plain, *expected], strict=True):
        # 2^-24 times the 256 terms of a sum, whose magnitudes are about 20 times the result.
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=3e-4)


def test_a_name_is_taken_once_and_freed_by_detaching(make_layer) -> None:
    linear = make_linear([ONE])
    linear.attach("private", make_layer(SHAPE))
    with pytest.raises(ConfigError, match="'private' is attached already"):
        linear.attach("private", make_layer(SHAPE, "lowrank"))
    linear.detach("private")
    linear.detach("private")
    linear.attach("private", make_layer(SHAPE, "lowrank"))
    assert isinstance(linear.streams["private"], LowRankStream)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_another_shape_is_refused(make_layer, kind: str) -> None:
    linear = make_linear([ONE])
    with pytest.raises(ConfigError, match=r"\(96, 128\).*\(96, 256\)"):
        linear.attach("private", make_layer((96, 128), kind))
    assert not linear.streams


def test_empty_rows_and_empty_streams_add_nothing() -> None:
    linear = make_linear([ONE])
    x = inputs(4)
    before = linear(x)
    none = torch.zeros(0, dtype=torch.int32)
    indptr = torch.zeros(SHAPE[0] + 1, dtype=torch.int32)
    linear.attach("private", CsrLayer(indptr, none, none.half(), SHAPE))
    assert torch.equal(linear_at(linear, x, [1.0] * 4), before)
    linear.detach("private")
    linear.attach("private", LowRankLayer(torch.zeros(0, SHAPE[1]), torch.zeros(SHAPE[0], 0), 1.0))
    assert torch.equal(linear_at(linear, x, [1.0] * 4), before)


def test_a_recomputation_outside_the_models_forward_is_refused(make_layer) -> None:
    linear = make_linear([ONE])
    linear.attach("private", make_layer(SHAPE))
    x = inputs(4).requires_grad_()
    for reentrant in (False, True):
        with gate.alpha(1):
            y = torch.utils.checkpoint.checkpoint(linear, x, use_reentrant=reentrant)
        with pytest.raises(AlphaError, match="recomputed in the backward pass"):
            y.sum().backward()
        # Inside the block as well: what is open now need not be what was open then.
        with gate.alpha(1), pytest.raises(AlphaError):
            torch.utils.checkpoint.checkpoint(linear, x, use_reentrant=reentrant).sum().backward()


def test_it_says_what_it_is(make_layer) -> None:
    linear = make_linear([ONE])
    linear.attach("private", make_layer(SHAPE))
    assert "streams=private" in repr(linear)
    assert "group_size=64" in repr(linear)
    assert isinstance(linear, nn.Module)
    assert (linear.out_features, linear.in_features) == SHAPE


def test_compiled_gradients_of_closed_rows_do_not_feel_poison() -> None:
    """All rows are multiplied there, and a closed row's gradient must be selected, too."""
    x = torch.ones(2, 3, requires_grad=True)
    poison = torch.full((3, 3), math.nan)
    compiled = torch.compile(add_gated, backend="eager", fullgraph=True)
    compiled(
        torch.zeros(2, 3), x, lambda rows: rows @ poison, torch.tensor([0.0, 1.0])
    ).sum().backward()
    assert x.grad[0].tolist() == [0, 0, 0]
    assert not bool(torch.isfinite(x.grad[1]).any())
