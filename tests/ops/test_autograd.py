"""Derivatives, registration and compilation of the op."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from libortho import ops
from libortho.layout import OrthoTiles, tile_values


@pytest.mark.parametrize("batch", [2, 5, 18])
@pytest.mark.parametrize("mixed", [False, True])
def test_gradcheck(case, batch: int, mixed: bool) -> None:
    """x and values against finite differences in float64, one alpha for all rows or many."""
    layer = case(20, 32, densities=(0.1, 0.05), value_dtype=torch.float64)
    alpha = torch.full((2, batch), 0.5)
    if mixed:
        alpha[0, ::2], alpha[1] = 0, 0
    x = torch.randn(batch, 32, dtype=torch.float64, requires_grad=True)
    # CSR values: the slots of pads must not move, so the check starts where a user's values do.
    csr = [
        torch.randn(int((tiles.order >= 0).sum()), dtype=torch.float64, requires_grad=True)
        for tiles, _ in layer.streams
    ]

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        streams = [
            (tiles, tile_values(value, tiles.order))
            for (tiles, _), value in zip(layer.streams, values, strict=True)
        ]
        return ops.dual_linear(x, layer.base, streams, alpha)

    assert torch.autograd.gradcheck(call, (x, *csr))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 40, 130])
def test_gradients_against_float64(case, batch: int, uniform: bool, dtype: torch.dtype) -> None:
    """Each gradient is a sum of products: gamma_n times the magnitudes, n from the sum's length.

    grad_x sums N products of the base and N of the stream, whose weights were rounded once more
    when alpha is one for all rows; grad_values sums M products of two factors and alpha.
    """
    layer = case(70, 64, densities=(0.1,), value_dtype=torch.float32)
    tiles, values = layer.streams[0]
    values.requires_grad_()
    x = torch.randn(batch, 64).to(dtype).requires_grad_()
    alpha = torch.ones(1, batch) if uniform else torch.rand(1, batch) * (torch.rand(1, batch) < 0.6)
    grad = torch.randn(batch, 70).to(dtype)
    layer(x, alpha).backward(grad)

    g, weight = grad.double(), alpha[0].double()[:, None]
    ortho, unit = layer.orthos[0], 2.0**-24
    rounding = 0 if dtype == torch.float32 else 2.0**-8
    exact = g @ layer.weight + weight * (g @ ortho)
    size = g.abs() @ layer.weight.abs() + weight * (g.abs() @ ortho.abs())
    allowed = (2 * 70 + 4) * unit * 1.01 * size * (1 + rounding) + rounding * exact.abs()
    assert ((x.grad.double() - exact).abs() <= allowed).all()

    pads = tiles.order < 0
    assert not values.grad[pads].any()
    outer = (weight * g).T @ x.detach().double()
    outer_size = (weight * g.abs()).T @ x.detach().double().abs()
    rows, columns = positions(tiles)
    real = ~pads
    error = (values.grad.double() - outer[rows, columns])[real].abs()
    assert (error <= (batch + 4) * unit * 1.01 * outer_size[rows, columns][real]).all()


def positions(tiles: OrthoTiles) -> tuple[torch.Tensor, torch.Tensor]:
    slices = torch.arange(tiles.slice_ptr.numel() - 1)
    owner = torch.repeat_interleave(slices, tiles.slice_ptr.diff().long())
    rows = (owner[:, None] * 16 + torch.arange(16)).clamp(max=tiles.shape[0] - 1)
    return rows, (tiles.columns.long() & 0xFFFF).clamp(max=tiles.shape[1] - 1)


@pytest.mark.parametrize("batch", [3, 40])
def test_values_learn_when_x_has_no_gradient(case, batch: int) -> None:
    layer = case(32, 64, densities=(0.1, 0.1), value_dtype=torch.float32)
    layer.streams[1][1].requires_grad_()
    layer(torch.randn(batch, 64), torch.ones(2, batch)).sum().backward()
    assert layer.streams[0][1].grad is None
    assert layer.streams[1][1].grad.any()


@pytest.mark.parametrize("batch", [3, 40])
def test_closed_stream_gives_and_takes_no_gradient(case, batch: int) -> None:
    layer = case(32, 64, densities=(0.1,), value_dtype=torch.float32)
    tiles, values = layer.streams[0]
    poison = torch.full_like(values, float("nan")).requires_grad_()
    x = torch.randn(batch, 64, requires_grad=True)
    ops.dual_linear(x, layer.base, [(tiles, poison)], torch.zeros(1, batch)).sum().backward()
    closed = x.grad
    x.grad = None
    ops.dual_linear(x, layer.base, [], torch.zeros(0, batch)).sum().backward()
    assert torch.equal(closed, x.grad)
    assert not poison.grad.any()


@pytest.mark.parametrize(
    ("batch", "densities", "alpha"),
    [
        (5, (), torch.zeros(0, 5)),
        (1, (0.1,), torch.ones(1, 1)),
        (5, (0.1, 0.1), torch.tensor([[0, 1, 0.5, 0, 1], [0, 0, 0, 0, 0.0]])),
        (20, (0.1,), torch.ones(1, 20)),
        (0, (0.1,), torch.zeros(1, 0)),
    ],
)
def test_opcheck(case, batch: int, densities: tuple[float, ...], alpha: torch.Tensor) -> None:
    layer = case(40, 32, densities=densities, value_dtype=torch.float32)
    x = torch.randn(32, batch).T.requires_grad_()
    for _, values in layer.streams:
        values.requires_grad_()
    ops.backend()
    torch.library.opcheck(torch.ops.libortho.dual_linear, layer.arguments(x, alpha))
    needs = [True] * len(densities)
    arguments = (torch.randn(batch, 40), x.detach(), *layer.arguments(x, alpha)[1:], True, needs)
    detached = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, arguments)
    torch.library.opcheck(torch.ops.libortho.dual_linear_backward, detached)


def test_one_graph_for_every_alpha(case) -> None:
    layer = case(40, 32, densities=(0.1,), value_dtype=torch.float32)
    values = layer.streams[0][1].requires_grad_()
    ops.backend()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer.__call__, fullgraph=True, backend=counter, dynamic=False)
    x = torch.randn(20, 32)
    for alpha in (torch.zeros(1, 20), torch.ones(1, 20), torch.full((1, 20), 0.5)):
        y = compiled(x, alpha)
        assert torch.equal(y, layer(x, alpha))
        y.sum().backward()
    assert counter.frame_count == 1
    assert values.grad.any()
