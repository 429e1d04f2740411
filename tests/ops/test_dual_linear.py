"""The op against float64, and the laws of the gate: alpha = 0 does not read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from libortho import ops
from libortho.layout import OrthoTiles

ALPHAS = torch.tensor([0.0, 0.0, 1.0, 0.5, 3 / 256])
BATCHES = (1, 3, 16, 17, 70)


def draw_alpha(streams: int, batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return ALPHAS[torch.randint(0, len(ALPHAS), (streams, batch), generator=generator)]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.sampled_from([1, 15, 32, 33, 64, 100]),
    groups=st.integers(1, 3),
    group_size=st.sampled_from([32, 64, 128]),
    batch=st.sampled_from([0, 1, 2, 3, 4, 5, 7, 16, 17, 33, 64, 65, 200]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    scale_dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    value_dtype=st.sampled_from([torch.float16, torch.float32]),
    densities=st.lists(st.sampled_from([0.0, 0.01, 0.2, 1.0]), max_size=2),
    seed=st.integers(0, 1000),
)
def test_against_float64(
    case, rows, groups, group_size, batch, dtype, scale_dtype, value_dtype, densities, seed
) -> None:
    """Within ``Case.bound``: accumulation of gamma_n, and one rounding of the result."""
    layer = case(
        rows, groups * group_size, group_size, tuple(densities), scale_dtype, value_dtype, seed
    )
    x = torch.randn(batch, groups * group_size, generator=torch.Generator().manual_seed(seed))
    x = x.to(dtype)
    alpha = draw_alpha(len(densities), batch, seed)
    y = layer(x, alpha)
    assert y.dtype == dtype
    assert y.shape == (batch, rows)
    error = (y.double() - layer.exact(x, alpha)).abs()
    assert (error <= layer.bound(x, alpha)).all(), float((error / layer.bound(x, alpha)).max())


def poisoned(layer, what: float) -> list[tuple[OrthoTiles, Tensor]]:
    """The layer's streams with every byte that a closed stream may hold turned to rubbish."""
    streams = []
    for tiles, values in layer.streams:
        rubbish = torch.randint(-32768, 32767, tiles.columns.shape, dtype=torch.int16)
        wild = torch.randint_like(tiles.slice_ptr, -(2**31), 2**31 - 1)
        broken = OrthoTiles(wild, rubbish, tiles.order, tiles.shape)
        streams.append((broken, torch.full_like(values, what)))
    return streams


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_closed_stream_is_not_read(case, batch: int, what: float) -> None:
    layer = case(48, 128, densities=(0.1, 0.1))
    x = torch.randn(batch, 128)
    absent = ops.dual_linear(x, layer.base, [], torch.zeros(0, batch))
    closed = torch.zeros(2, batch)
    assert torch.equal(layer(x, closed), absent)
    assert torch.equal(ops.dual_linear(x, layer.base, poisoned(layer, what), closed), absent)


@pytest.mark.parametrize("batch", [3, 16, 17, 70])
def test_closed_rows_beside_open_ones(case, batch: int) -> None:
    """NaN in a stream that some rows open reaches those rows alone."""
    layer = case(48, 128, densities=(0.5, 0.1))
    (tiles, values), clean = layer.streams
    streams = [(tiles, torch.full_like(values, float("nan"))), clean]
    x = torch.randn(batch, 128)
    alpha = torch.ones(2, batch)
    alpha[0, ::2] = 0
    y = ops.dual_linear(x, layer.base, streams, alpha)
    assert y[1::2].isnan().all()
    only_clean = ops.dual_linear(x, layer.base, [clean], alpha[1:])
    assert torch.equal(y[::2], only_clean[::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [4, 16, 17, 70])
def test_rows_equal_their_solo_runs(case, batch: int, dtype: torch.dtype) -> None:
    """A row of a mixed batch has the bits of a batch of that shape that is all at its alpha."""
    layer = case(80, 96, densities=(0.1, 0.02))
    x = torch.randn(batch, 96).to(dtype)
    alpha = draw_alpha(2, batch, seed=3)
    mixed = layer(x, alpha)
    for row in range(batch):
        uniform = alpha[:, row : row + 1].expand(2, batch).contiguous()
        assert torch.equal(mixed[row], layer(x, uniform)[row])
    lonely = torch.zeros(2, batch)
    lonely[:, 1] = alpha[:, 1] = torch.tensor([1.0, 0.5])
    assert torch.equal(layer(x, lonely)[1], layer(x, alpha)[1])


@pytest.mark.parametrize("batch", BATCHES)
def test_runs_repeat_bit_for_bit(case, batch: int) -> None:
    layer = case(100, 256, 128, densities=(0.05,))
    x, alpha = torch.randn(batch, 256), draw_alpha(1, batch)
    assert torch.equal(layer(x, alpha), layer(x, alpha))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 16])
def test_threads_do_not_change_small_batches(case, batch: int, dtype: torch.dtype) -> None:
    layer = case(512, 512, 128, densities=(0.05,))
    x, alpha = torch.randn(batch, 512).to(dtype), torch.ones(1, batch)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(layer(x, alpha))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_heavy_row_and_empty_rows(case, stream: Callable, batch: int) -> None:
    layer = case(70, 256, 128, densities=())
    mask = torch.zeros(70, 256, dtype=torch.bool)
    mask[33] = True
    mask[69, ::50] = True
    values = torch.randn(int(mask.sum())) * 0.01
    layer.streams.append(stream(mask, values))
    dense = torch.zeros(70, 256, dtype=torch.float64)
    dense[mask] = values.double()
    layer.orthos.append(dense)
    x, alpha = torch.randn(batch, 256), torch.ones(1, batch)
    y = layer(x, alpha)
    assert ((y.double() - layer.exact(x, alpha)).abs() <= layer.bound(x, alpha)).all()
    untouched = [row for row in range(70) if row not in (33, 69)]
    assert torch.equal(y[:, untouched], layer(x, torch.zeros(1, batch))[:, untouched])


def test_strided_input(case) -> None:
    layer = case(32, 64, densities=(0.1,))
    x = torch.randn(64, 10).T
    alpha = torch.ones(10, 1).T
    assert torch.equal(layer(x, alpha), layer(x.contiguous(), alpha))


def test_autocast_does_not_round_the_operands(case) -> None:
    layer = case(32, 64, densities=(0.1,))
    x, alpha = torch.randn(40, 64), torch.ones(1, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(x, alpha)
    assert torch.equal(inside, layer(x, alpha))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a | {"x": torch.randn(2, 32)}, r"x: expected \[M, 64\], found \[2, 32\]"),
        (lambda a: a | {"x": torch.randn(2, 1, 64)}, r"x: expected \[M, K\], found \[2, 1, 64\]"),
        (lambda a: a | {"x": torch.ones(2, 64, dtype=torch.int32)}, "x: expected float32"),
        (lambda a: a | {"alpha": torch.zeros(1, 3)}, "alpha: expected"),
        (lambda a: a | {"alpha": torch.zeros(1, 2).double()}, "alpha: expected"),
        (lambda a: a | {"rows": 33}, "tiles: expected"),
        (lambda a: a | {"group_size": 16}, "group_size: expected"),
        (lambda a: a | {"group_size": 64}, "scales: expected"),
        (lambda a: a | {"columns": []}, "differ in number"),
        (lambda a: a | {"values": [a["values"][0][:-1]]}, "columns and values"),
        (lambda a: a | {"values": [a["values"][0].double()]}, "values: expected float16"),
        (lambda a: a | {"slice_ptr": [a["slice_ptr"][0][:-1]]}, "slice_ptr: expected"),
    ],
)
@pytest.mark.usefixtures("native")
def test_errors_name_the_argument(case, change: Callable, word: str) -> None:
    names = [
        "x",
        "tiles",
        "scales",
        "rows",
        "group_size",
        "slice_ptr",
        "columns",
        "values",
        "alpha",
    ]
    layer = case(32, 64, densities=(0.1,))
    arguments = dict(
        zip(names, layer.arguments(torch.randn(2, 64), torch.zeros(1, 2)), strict=True)
    )
    calls = ops.native_op_calls()
    with pytest.raises(RuntimeError, match=word):
        torch.ops.libortho.dual_linear(**change(arguments))
    assert ops.native_op_calls() == calls


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("batch", "dense"), [(0, 0), (1, 0), (16, 0), (17, 1), (200, 1)])
def test_each_call_counts_once(case, batch: int, dense: int) -> None:
    layer = case(32, 64, densities=(0.1,))
    x = torch.randn(batch, 64, requires_grad=True)
    calls, dense_calls = ops.native_op_calls(), ops.dense_route_calls()
    y = layer(x, torch.ones(1, batch))
    assert ops.native_op_calls() - calls == 1
    assert ops.dense_route_calls() - dense_calls == dense
    y.sum().backward()
    assert ops.native_op_calls() - calls == 1


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pairs_of_bf16_serve_every_batch(case, dtype: torch.dtype) -> None:
    """Where the CPU multiplies pairs of bf16, no batch dequantises the base."""
    layer = case(32, 64, densities=(0.1,))
    calls, dense_calls = ops.native_op_calls(), ops.dense_route_calls()
    layer(torch.randn(40, 64).to(dtype), torch.ones(1, 40))
    assert ops.native_op_calls() - calls == 1
    wanted = 0 if ops.backend().isa == "avx512bf16" else 1
    assert ops.dense_route_calls() - dense_calls == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 5, 20, 40])
def test_inf_and_nan_stay_in_their_row(case, dtype: torch.dtype, batch: int) -> None:
    layer = case(64, 128, 64, densities=())
    x = torch.randn(batch, 128).to(dtype)
    clean = layer(x, torch.zeros(0, batch))
    x[0, 3] = float("inf")
    infinite = layer(x, torch.zeros(0, batch))
    code = layer.weight[:, 3]
    assert infinite[0, code > 0].eq(float("inf")).all()
    assert infinite[0, code < 0].eq(-float("inf")).all()
    assert torch.equal(infinite[1:], clean[1:])
    x[0, 3] = float("nan")
    assert layer(x, torch.zeros(0, batch))[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_long_inputs_and_large_batches(case, dtype: torch.dtype) -> None:
    """More inputs than one pass covers, more rows than one block: the seams of the tiling."""
    layer = case(70, 4480, 128, densities=(0.01,))
    x = torch.randn(150, 4480).to(dtype)
    alpha = draw_alpha(1, 150)
    error = (layer(x, alpha).double() - layer.exact(x, alpha)).abs()
    assert (error <= layer.bound(x, alpha)).all()
