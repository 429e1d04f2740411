"""Streams added to a product that another kernel computed."""

from __future__ import annotations

import pytest
import torch

from libortho import ops
from libortho.ops import reference


def run(case, y, x, alpha, which):
    ops.add_streams(y, x, alpha, which, case.streams)
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_equals_the_layer_in_float64(case, dtype, rows: int) -> None:
    layer = case(50, 96, densities=(0.05, 0.1))
    layer.weight.zero_()
    x = torch.randn(rows, 96).to(dtype)
    alpha = torch.randint(0, 3, (3, rows + 5)) / 2
    base = torch.zeros(rows, 50, dtype=dtype)
    y = run(layer, base.clone(), x, alpha, [2, 0])
    chosen = alpha[[2, 0], :rows]
    assert ((y.double() - layer.exact(x, chosen)).abs() <= layer.bound(x, chosen)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_closed_rows_keep_their_bits_and_read_nothing(case, dtype) -> None:
    layer = case(48, 64, densities=(0.2,))
    layer.streams[0][1].fill_(torch.nan)
    x = torch.randn(9, 64).to(dtype)
    base = torch.randn(9, 48).to(dtype)
    alpha = torch.zeros(1, 9)
    assert torch.equal(run(layer, base.clone(), x, alpha, [0]), base)
    alpha[0, 4] = 1
    y = run(layer, base.clone(), x, alpha, [0])
    closed = alpha[0] == 0
    assert torch.equal(y[closed], base[closed])
    assert y[4].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_means_the_same(case, dtype) -> None:
    layer = case(33, 64, densities=(0.1, 0.1))
    layer.weight.zero_()
    x = torch.randn(6, 64).to(dtype)
    alpha = torch.rand(2, 6) * torch.tensor([1.0, 0, 1, 1, 0, 1])
    y = run(layer, torch.zeros(6, 33, dtype=dtype), x, alpha, [0, 1])
    other = torch.zeros(6, 33, dtype=dtype)
    parts = zip(*((t.slice_ptr, t.columns, v) for t, v in layer.streams), strict=True)
    reference.add_streams(other, x, alpha, [0, 1], *map(list, parts))
    bound = layer.bound(x, alpha)
    assert ((y.double() - other.double()).abs() <= 2 * bound).all()


def test_a_view_is_written_through(case) -> None:
    layer = case(32, 64)
    wide = torch.zeros(4, 64)
    x, alpha = torch.randn(4, 64), torch.ones(1, 4)
    ops.add_streams(wide[:, 32:], x, alpha, [0], layer.streams)
    expected = run(layer, torch.zeros(4, 32), x, alpha, [0])
    assert torch.equal(wide[:, 32:], expected)
    assert not wide[:, :32].any()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alpha": torch.ones(1, 3)}, "alpha"),
        ({"alpha": torch.ones(1, 4, dtype=torch.float64)}, "alpha"),
        ({"which": [1]}, "which"),
        ({"y": torch.zeros(4, 64)}, "slice_ptr"),
        ({"y": torch.zeros(3, 32)}, "y:"),
        ({"x": torch.randn(4, 64, dtype=torch.float16)}, "y:"),
    ],
)
def test_what_does_not_fit_is_named(case, change, named: str) -> None:
    if ops.backend().name != "native":
        pytest.skip("the reference leaves shapes to torch")
    layer = case(32, 64)
    good = {"y": torch.zeros(4, 32), "x": torch.randn(4, 64), "alpha": torch.ones(1, 4)}
    arguments = {**good, "which": [0], **change}
    with pytest.raises(RuntimeError, match=named):
        ops.add_streams(**arguments, streams=layer.streams)


def test_it_compiles_with_another_alpha_each_time(case) -> None:
    layer = case(32, 64)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x, alpha):
        y = x[:, :32] * 2
        ops.add_streams(y, x, alpha, [0], layer.streams)
        return y

    x = torch.randn(3, 64)
    for alpha in (torch.zeros(1, 3), torch.ones(1, 3)):
        expected = run(layer, x[:, :32] * 2, x, alpha, [0])
        assert torch.equal(step(x, alpha), expected)
