"""The op on a CUDA device: float64, the laws of the gate, graphs that replay with another alpha."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from random_layer import Case
from torch import Tensor

from libortho import ops
from libortho.layout import BaseTiles, OrthoTiles
from libortho.ops import trial

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BATCHES = (1, 3, 4, 5, 8, 9, 16, 17, 33, 64, 70)
ALPHAS = torch.tensor([0.0, 0.0, 1.0, 0.5, 3 / 256])


def on_device(layer: Case) -> Case:
    base = layer.base
    streams = [(tiles_to(tiles), values.cuda()) for tiles, values in layer.streams]
    moved = BaseTiles(base.tiles.cuda(), base.scales.cuda(), base.shape, base.group_size)
    return Case(moved, streams, layer.weight, layer.orthos)


def tiles_to(tiles: OrthoTiles) -> OrthoTiles:
    return OrthoTiles(tiles.slice_ptr.cuda(), tiles.columns.cuda(), tiles.order.cuda(), tiles.shape)


def draw(batch: int, columns: int, streams: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, columns, generator=generator).to(dtype)
    return x, ALPHAS[torch.randint(0, len(ALPHAS), (streams, batch), generator=generator)]


@pytest.fixture(scope="module", autouse=True)
def native_cuda() -> None:
    assert ops.cuda_backend().name == "native", ops.cuda_backend().reason


def test_the_trial_before_the_first_use_passes() -> None:
    kernel = torch.ops.libortho.dual_linear.default
    assert trial.disagreement(kernel, "cuda") is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "group"),
    [(33, 96, 32), (100, 320, 64), (300, 2176, 128), (1000, 8192, 128)],
)
def test_against_float64(case: Callable, rows, columns, group, scale_dtype, dtype) -> None:
    cpu = case(rows, columns, group, (0.05, 0.3), scale_dtype)
    layer = on_device(cpu)
    for batch in BATCHES:
        x, alpha = draw(batch, columns, 2, dtype)
        y = layer(x.cuda(), alpha.cuda())
        assert y.dtype == dtype
        error = (y.cpu().double() - cpu.exact(x, alpha)).abs()
        worst = float((error / cpu.bound(x, alpha)).max())
        assert worst <= 1, (batch, worst)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_closed_stream_is_not_read(case: Callable, batch: int, what: float) -> None:
    layer = on_device(case(48, 256, 128, (0.1, 0.1)))
    x, _ = draw(batch, 256, 2, torch.bfloat16)
    closed = torch.zeros(2, batch, device="cuda")
    absent = ops.dual_linear(x.cuda(), layer.base, [], torch.zeros(0, batch, device="cuda"))
    streams = []
    for tiles, values in layer.streams:
        # A read of these slots leaves the device's memory, and stops the process.
        wild = torch.arange(tiles.slice_ptr.numel(), device="cuda", dtype=torch.int32) * 2**26
        rubbish = torch.randint_like(tiles.columns, -32768, 32767)
        broken = OrthoTiles(wild, rubbish, tiles.order, tiles.shape)
        streams.append((broken, torch.full_like(values, what)))
    assert torch.equal(layer(x.cuda(), closed), absent)
    assert torch.equal(ops.dual_linear(x.cuda(), layer.base, streams, closed), absent)


def with_moved(arguments: tuple, name: str, past: int) -> list:
    """The op's arguments, one copied to ``past`` bytes behind the beginning of its memory."""

    def moved(tensor: Tensor) -> Tensor:
        room = torch.empty(past + tensor.nbytes, dtype=torch.uint8, device=tensor.device)
        return room[past:].view(tensor.dtype).view(tensor.shape).copy_(tensor)

    names = [one.name for one in torch.ops.libortho.dual_linear.default._schema.arguments]
    out = list(arguments)
    at = names.index(name)
    out[at] = [moved(one) for one in out[at]] if isinstance(out[at], list) else moved(out[at])
    return out


@pytest.mark.parametrize("batch", [1, 16, 33, 385])
@pytest.mark.parametrize(
    ("name", "past", "said"),
    [
        ("tiles", 8, "tiles"),
        ("scales", 4, "scales"),
        ("columns", 8, "columns of stream 0"),
        ("values", 8, "values of stream 0"),
    ],
)
def test_misaligned_operands_are_refused(
    case: Callable, name: str, past: int, said: str, batch: int
) -> None:
    densities = (0.1,) if "stream" in said else ()  # whose launch looks at the base, too
    layer = on_device(case(40, 256, 128, densities))
    x, alpha = draw(batch, 256, len(densities), torch.bfloat16)
    arguments = with_moved(layer.arguments(x.cuda(), alpha.cuda()), name, past)
    counted = ops.native_op_calls(), ops.dense_route_calls()
    with pytest.raises(RuntimeError, match=f"{said}: expected an address that is a multiple of"):
        torch.ops.libortho.dual_linear(*arguments)
    assert (ops.native_op_calls(), ops.dense_route_calls()) == counted


def test_an_x_elsewhere_is_refused(case: Callable) -> None:
    layer = on_device(case(40, 256, 128, (0.1,)))
    x, alpha = draw(2, 256, 1, torch.bfloat16)
    arguments = layer.arguments(x, alpha.cuda())
    counted = ops.native_op_calls()
    with pytest.raises(RuntimeError, match=r"tiles: expected .* of x, cpu, found one on cuda:0"):
        torch.ops.libortho.dual_linear(*arguments)
    assert ops.native_op_calls() == counted


@pytest.mark.parametrize("batch", [1, 16, 33, 70, 385])
@pytest.mark.parametrize(
    ("name", "past"),
    [("x", 2), ("tiles", 16), ("scales", 8), ("slice_ptr", 4), ("columns", 16), ("values", 16),
     ("alpha", 4)],
)  # fmt: skip
def test_operands_lie_where_they_may(case: Callable, name: str, past: int, batch: int) -> None:
    """x may lie anywhere, the others at any multiple of what the kernel copies at a time."""
    layer = on_device(case(40, 256, 128, (0.1,)))
    x, alpha = draw(batch, 256, 1, torch.bfloat16)
    arguments = layer.arguments(x.cuda(), alpha.cuda())
    wanted = torch.ops.libortho.dual_linear(*arguments)
    got = torch.ops.libortho.dual_linear(*with_moved(arguments, name, past))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("batch", [3, 16, 33, 70])
def test_closed_rows_beside_open_ones(case: Callable, batch: int) -> None:
    layer = on_device(case(48, 256, 128, (0.5, 0.1)))
    (tiles, values), clean = layer.streams
    streams = [(tiles, torch.full_like(values, float("nan"))), clean]
    x = draw(batch, 256, 2, torch.float16)[0].cuda()
    alpha = torch.ones(2, batch, device="cuda")
    alpha[0, ::2] = 0
    y = ops.dual_linear(x, layer.base, streams, alpha)
    assert y[1::2].isnan().all()
    assert torch.equal(y[::2], ops.dual_linear(x, layer.base, [clean], alpha[1:])[::2])


@pytest.mark.parametrize("batch", [1, 4, 8, 16, 64])
def test_graph_replays_with_another_alpha(case: Callable, batch: int) -> None:
    cpu = case(300, 1152, 128, (0.05, 0.02))
    layer = on_device(cpu)
    x, _ = draw(batch, 1152, 2, torch.bfloat16)
    held, alpha = x.cuda(), torch.zeros(2, batch, device="cuda")
    layer(held, alpha)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = layer(held, alpha)
        second = layer(held, alpha)
    for seed in range(4):
        chosen = ALPHAS[
            torch.randint(0, 5, (2, batch), generator=torch.Generator().manual_seed(seed))
        ]
        alpha.copy_(chosen if seed else torch.zeros_like(chosen))
        graph.replay()
        assert torch.equal(first, second)
        assert torch.equal(first, layer(held, alpha))
        error = (first.cpu().double() - cpu.exact(x, alpha.cpu())).abs()
        assert (error <= cpu.bound(x, alpha.cpu())).all()


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_opcheck(case: Callable, batch: int) -> None:
    layer = on_device(case(40, 128, 128, (0.1,)))
    x, alpha = draw(batch, 128, 1, torch.bfloat16)
    torch.library.opcheck(
        torch.ops.libortho.dual_linear,
        layer.arguments(x.cuda(), alpha.cuda()),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize(("batch", "dense"), [(0, 0), (1, 0), (64, 0), (384, 0), (385, 1)])
def test_each_call_counts_once(case: Callable, batch: int, dense: int) -> None:
    layer = on_device(case(40, 128, 128, (0.1,)))
    x, alpha = draw(batch, 128, 1, torch.bfloat16)
    calls, dense_calls = ops.native_op_calls(), ops.dense_route_calls()
    layer(x.cuda(), alpha.cuda())
    assert ops.native_op_calls() - calls == 1
    assert ops.dense_route_calls() - dense_calls == dense


def test_large_batches_round_the_weights_once(case: Callable) -> None:
    """Weights, product and sum are each rounded to the dtype of x; closed rows stay the base."""
    cpu = case(100, 512, 128, (0.05,))
    layer = on_device(cpu)
    x, alpha = draw(500, 512, 1, torch.bfloat16)
    y = layer(x.cuda(), alpha.cuda())
    absent = ops.dual_linear(x.cuda(), layer.base, [], torch.zeros(0, 500, device="cuda"))
    shut = alpha[0] == 0
    assert torch.equal(y.cpu()[shut], absent.cpu()[shut])
    unit = 2.0**-8
    size = x.double().abs() @ cpu.weight.abs().T + x.double().abs() @ cpu.orthos[0].abs().T
    error = (y.cpu().double() - cpu.exact(x, alpha)).abs()
    assert (error <= 1.01 * unit * size + 3 * unit * cpu.exact(x, alpha).abs() + 1e-6).all()


def test_what_is_trained_runs_on_the_reference(case: Callable) -> None:
    layer = on_device(case(40, 128, 128, (0.1,)))
    values = layer.streams[0][1].float().requires_grad_()
    x = draw(6, 128, 1, torch.float32)[0].cuda().requires_grad_()
    calls = ops.native_op_calls()
    y = ops.dual_linear(
        x, layer.base, [(layer.streams[0][0], values)], torch.ones(1, 6, device="cuda")
    )
    y.sum().backward()
    assert ops.native_op_calls() == calls
    for gradient in (values.grad, x.grad):
        assert gradient is not None
        assert gradient.abs().sum() > 0
