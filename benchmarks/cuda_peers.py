"""The CUDA op beside its peers in one run: single linears, and the 128 linears of an 8B model.

Every timed call stands in a CUDA graph, back to back with others over weights that rotate through
more memory than the L2 cache holds; each peer is checked against float32 first. Times are medians
over replays.

    python benchmarks/cuda_peers.py --commit $(git rev-parse HEAD) --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from libortho import ops
from libortho.layout import BaseTiles, OrthoTiles, tile_csr

SHAPES = ((1024, 4096), (4096, 4096), (6144, 4096), (14336, 4096), (28672, 4096), (4096, 14336))
CHAIN = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
LAYERS = 32
GROUP = 128
ROTATED_BYTES = 320 << 20
REPLAYS = 15


def graph_microseconds(calls: list[Callable[[], object]]) -> float:
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1000 / len(calls))
    return statistics.median(times[2:])


def random_base(rows: int, columns: int) -> BaseTiles:
    tiles = torch.randint(0, 256, (rows // 32, columns // 8, 128), device="cuda", dtype=torch.uint8)
    scales = torch.rand(rows // 32, columns // GROUP, 32, device="cuda") * 0.004 + 0.002
    return BaseTiles(tiles, scales.half(), (rows, columns), GROUP)


def random_stream(rows: int, columns: int, density: float) -> tuple[OrthoTiles, Tensor, Tensor]:
    """Tiles and values on the device, and the same as a CSR matrix for the naive dual stream."""
    mask = torch.rand(rows, columns, device="cuda") < density
    csr = (mask * (torch.randn(rows, columns, device="cuda") * 0.02)).bfloat16().to_sparse_csr()
    indptr, indices = csr.crow_indices().int(), csr.col_indices().int()
    tiles = tile_csr(indptr, indices, (rows, columns))
    flat = torch.cat((csr.values().half(), csr.values().new_zeros(1).half()))
    values = flat[torch.where(tiles.order < 0, indices.numel(), tiles.order).long()]
    return tiles, values.contiguous(), csr


def dequantised(base: BaseTiles) -> Tensor:
    rows, columns = base.shape
    packed = base.tiles.view(rows // 32, columns // 8, 32, 4).permute(0, 2, 1, 3)
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).reshape(rows, columns)
    codes = (nibbles.to(torch.int8) ^ 8) - 8
    scales = base.scales.transpose(1, 2).reshape(rows, -1).float()
    return codes.float() * scales.repeat_interleave(GROUP, dim=1)


def copied(tiles: OrthoTiles) -> OrthoTiles:
    return OrthoTiles(tiles.slice_ptr, tiles.columns.clone(), tiles.order, tiles.shape)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight)


def tinygemm(x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
    return torch.ops.aten._weight_int4pack_mm(x, weight[0], GROUP, weight[1])


def naive_dual(x: Tensor, weight: tuple[Tensor, Tensor], csr: Tensor) -> Tensor:
    return tinygemm(x, weight) + (csr @ x.T).T


def fused(
    x: Tensor, alpha: Tensor, base: BaseTiles, stream: tuple[OrthoTiles, Tensor] | None = None
) -> Tensor:
    return ops.dual_linear(x, base, [] if stream is None else [stream], alpha)


def tinygemm_weight(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    packed = torch.randint(0, 256, (rows, columns // 2), device="cuda", dtype=torch.uint8)
    weight = torch.ops.aten._convert_weight_to_int4pack(packed, 8)
    scales = torch.rand(columns // GROUP, rows, 2, device="cuda").bfloat16() * 0.01
    return weight, scales


def check(base: BaseTiles, stream: tuple[OrthoTiles, Tensor, Tensor], x: Tensor) -> float:
    """The op's largest distance from float32, over the largest result."""
    wanted = x.float() @ dequantised(base).T + x.float() @ stream[2].to_dense().float().T
    ones = torch.ones(1, x.shape[0], device="cuda")
    got = ops.dual_linear(x, base, [stream[:2]], ones).float()
    return float((got - wanted).abs().max() / wanted.abs().max())


def single(shape: tuple[int, int], batches: list[int], rows: list[dict[str, object]]) -> None:
    count = max(2, ROTATED_BYTES // (shape[0] * shape[1] // 2))
    bases = [random_base(*shape) for _ in range(count)]
    dense = [torch.randn(shape, device="cuda").bfloat16() for _ in range(max(2, count // 4))]
    tiny = [tinygemm_weight(*shape) for _ in range(count)]
    streams = {density: random_stream(*shape, density) for density in (0.01, 0.05)}
    for batch in batches:
        x = torch.randn(batch, shape[1], device="cuda").bfloat16()
        none = torch.zeros(0, batch, device="cuda")
        error = check(bases[0], streams[0.01], x)
        assert error < 0.01, (shape, batch, error)

        def time(
            name: str, density: float, calls: list[Callable[[], object]], batch: int = batch
        ) -> None:
            us = round(graph_microseconds(calls), 4)
            shown = {"rows": shape[0], "columns": shape[1], "batch": batch, "kernel": name}
            rows.append({**shown, "density": density, "us": us})

        time("bf16", 0, [partial(linear, x, w) for w in dense] * 2)
        time("tinygemm", 0, [partial(tinygemm, x, w) for w in tiny])
        time("libortho base", 0, [partial(fused, x, none, b) for b in bases])
        for density, (tiles, values, csr) in streams.items():
            own = [(copied(tiles), values.clone()) for _ in bases]
            for name in (0.0, 1.0):
                alpha = torch.full((1, batch), name, device="cuda")
                calls = [partial(fused, x, alpha, b, s) for b, s in zip(bases, own, strict=True)]
                time(f"libortho alpha {name:.0f}", density, calls)
            if batch in (1, 8):
                time("tinygemm + cuSPARSE", density, [partial(naive_dual, x, w, csr) for w in tiny])


def chain(batches: list[int], rows: list[dict[str, object]]) -> None:
    """ms for the 128 linears of the 8B shape, in order, each with weights of its own."""
    inputs = {
        k: {m: torch.randn(m, k, device="cuda").bfloat16() for m in batches} for k in (4096, 14336)
    }
    order = [shape for _ in range(LAYERS) for shape in CHAIN]

    def add(name: str, batch: int, calls: list[Callable[[], object]]) -> None:
        ms = graph_microseconds(calls) * len(calls) / 1000
        rows.append({"chain": name, "batch": batch, "linears": len(calls), "ms": round(ms, 4)})

    bases = [random_base(*shape) for shape in order]
    streams = {shape: random_stream(*shape, 0.01)[:2] for shape in CHAIN}
    own = [(copied(streams[shape][0]), streams[shape][1].clone()) for shape in order]
    for m in batches:
        before = ops.native_op_calls()
        x = [inputs[shape[1]][m] for shape in order]
        none = torch.zeros(0, m, device="cuda")
        calls = [partial(fused, i, none, b) for i, b in zip(x, bases, strict=True)]
        add("libortho base", m, calls)
        for name in (0.0, 1.0):
            alpha = torch.full((1, m), name, device="cuda")
            calls = [partial(fused, i, alpha, b, s) for i, b, s in zip(x, bases, own, strict=True)]
            add(f"libortho alpha {name:.0f}, density 0.01", m, calls)
        # Two calls to warm up and one capture each.
        assert ops.native_op_calls() - before == 3 * (len(order) + 2)
    del bases, own, calls
    tiny = [tinygemm_weight(*shape) for shape in order]
    for m in batches:
        x = [inputs[shape[1]][m] for shape in order]
        add("tinygemm", m, [partial(tinygemm, i, w) for i, w in zip(x, tiny, strict=True)])
    del tiny
    dense = [torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_() for shape in order]
    for m in batches:
        x = [inputs[shape[1]][m] for shape in order]
        add("bf16", m, [partial(linear, i, w) for i, w in zip(x, dense, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and batches")
    options = parser.parse_args()
    assert ops.cuda_backend().name == "native", ops.cuda_backend().reason
    torch.manual_seed(0)
    clocks = "nvidia-smi --query-gpu=clocks.sm,clocks.mem --format=csv,noheader"
    linears: list[dict[str, object]] = []
    linked: list[dict[str, object]] = []
    chain([1, 8] if options.quick else [1, 8, 32], linked)
    for shape in SHAPES[1:5:3] if options.quick else SHAPES:
        single(shape, [1, 16] if options.quick else [1, 8, 16, 32, 64], linears)
    result = {
        "commit": options.commit,
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name(0),
        "clocks": subprocess.run(clocks.split(), capture_output=True, text=True).stdout.strip(),
        "torch": torch.__version__,
        "group_size": GROUP,
        "replays": REPLAYS,
        "linears": linears,
        "chains": linked,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for row in linked + linears:
        print(*row.values())


if __name__ == "__main__":
    main()
