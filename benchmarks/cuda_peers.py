r"""The CUDA op beside its peers in one run: single linears, and the 128 linears of an 8B model.

Every timed call stands in a CUDA graph, back to back with others over weights that rotate through
more memory than the L2 cache holds; the op and each peer are checked against float32 first. Times
are medians over replays.

    python benchmarks/cuda_peers.py --commit $(git rev-parse HEAD) --json out.json \
        --marlin libmarlin.so --cutlass libcutlass.so \
        --spqr libspqr.so --squeezellm libsqueezellm.so

Kernels of others come as shared libraries, which benchmarks/peers/README.md says how to build; one
that is not given, or is wrong, stands in the record as skipped, with the reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from peers.check import KINDS, MOST, Checked, checked, distance
from peers.layers import GROUP, dequantised, random_base, random_csr, tiled
from peers.peer import Tensors
from torch import Tensor

from libortho import ops
from libortho.errors import BackendUnavailable, VoidRun
from libortho.layout import BaseTiles, OrthoTiles

SHAPES = ((1024, 4096), (4096, 4096), (6144, 4096), (14336, 4096), (28672, 4096), (4096, 14336))
CHAIN = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
DENSITIES = (0.01, 0.05)
SPARSE_BATCHES = (1, 8)
"""Rows at which an INT4 kernel with cuSPARSE after it is timed."""
LAYERS = 32
ROTATED_BYTES = 320 << 20
REPLAYS = 15

Calls = Sequence[Callable[[], Tensor]]
Rows = list[dict[str, object]]


def graph_microseconds(calls: Calls) -> float:
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times: list[float] = []
    for _ in range(REPLAYS + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1000 / len(calls))
    return statistics.median(times[2:])


def copied(stream: tuple[OrthoTiles, Tensor]) -> tuple[OrthoTiles, Tensor]:
    tiles, values = stream
    columns = tiles.columns.clone()
    return OrthoTiles(tiles.slice_ptr, columns, tiles.order, tiles.shape), values.clone()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight)


def tinygemm(x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
    y: Tensor = torch.ops.aten._weight_int4pack_mm(x, weight[0], GROUP, weight[1])
    return y


def then_sparse(multiply: Callable[[], Tensor], x: Tensor, csr: Tensor) -> Tensor:
    """The naive dual stream: an INT4 kernel, then cuSPARSE, then a sum."""
    return multiply() + (csr @ x.T).T


def fused(
    x: Tensor, alpha: Tensor, base: BaseTiles, stream: tuple[OrthoTiles, Tensor] | None = None
) -> Tensor:
    return ops.dual_linear(x, base, [] if stream is None else [stream], alpha)


def tinygemm_weight(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    packed = torch.randint(0, 256, (rows, columns // 2), device="cuda", dtype=torch.uint8)
    weight = torch.ops.aten._convert_weight_to_int4pack(packed, 8)
    scales = torch.rand(columns // GROUP, rows, 2, device="cuda").bfloat16() * 0.01
    return weight, scales


def error(base: BaseTiles, stream: tuple[OrthoTiles, Tensor], csr: Tensor, x: Tensor) -> float:
    """The op's largest distance from float32, over the largest result."""
    wanted = x.float() @ dequantised(base).T + x.float() @ csr.to_dense().float().T
    return distance(fused(x, torch.ones(1, x.shape[0], device="cuda"), base, stream), wanted)


def half_precision(csr: Tensor) -> Tensor:
    indptr, indices, values = csr.crow_indices(), csr.col_indices(), csr.values().half()
    return torch.sparse_csr_tensor(indptr, indices, values, csr.shape)


class Single:
    """One shape at every number of rows, by every kernel that can."""

    def __init__(self, shape: tuple[int, int], batches: Sequence[int], rows: Rows) -> None:
        self.shape, self.rows, self.batches = shape, rows, batches
        count = max(2, ROTATED_BYTES // (shape[0] * shape[1] // 2))
        self.bases = [random_base(*shape) for _ in range(count)]
        self.csr = {density: random_csr(*shape, density) for density in DENSITIES}

    def input(self, batch: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(batch, self.shape[1], device="cuda").to(dtype)

    def add(self, name: str, batch: int, density: float, us: float, **more: object) -> None:
        shown = {"rows": self.shape[0], "columns": self.shape[1], "batch": batch, "kernel": name}
        self.rows.append({**shown, "density": density, "us": round(us, 4), **more})

    def own(self) -> None:
        streams = {density: tiled(csr) for density, csr in self.csr.items()}
        for batch in self.batches:
            x = self.input(batch, torch.bfloat16)
            off = error(self.bases[0], streams[0.01], self.csr[0.01], x)
            if not off < MOST:
                raise VoidRun(
                    f"{self.shape[0]}x{self.shape[1]}, {batch} rows: the op is off by {off:.3g} of "
                    f"the largest result, at most {MOST} was expected; it is not timed. "
                    "`libortho doctor` says what it was built by"
                )
            none = torch.zeros(0, batch, device="cuda")
            us = graph_microseconds([partial(fused, x, none, base) for base in self.bases])
            self.add("libortho base", batch, 0, us)
            for density, stream in streams.items():
                own = [copied(stream) for _ in self.bases]
                for value in (0.0, 1.0):
                    alpha = torch.full((1, batch), value, device="cuda")
                    pairs = zip(self.bases, own, strict=True)
                    calls = [partial(fused, x, alpha, base, one) for base, one in pairs]
                    us = graph_microseconds(calls)
                    self.add(f"libortho alpha {value:.0f}", batch, density, us)

    def torch_kernels(self) -> None:
        count = max(2, len(self.bases) // 4)
        dense = [torch.randn(self.shape, device="cuda").bfloat16() for _ in range(count)]
        tiny = [tinygemm_weight(*self.shape) for _ in self.bases]
        for batch in self.batches:
            x = self.input(batch, torch.bfloat16)
            us = graph_microseconds([partial(linear, x, weight) for weight in dense] * 2)
            self.add("bf16", batch, 0, us)
            calls = [partial(tinygemm, x, weight) for weight in tiny]
            self.add("tinygemm", batch, 0, graph_microseconds(calls))
            self.naive("tinygemm", x, calls, self.csr)

    def naive(self, name: str, x: Tensor, calls: Calls, csr: dict[float, Tensor]) -> None:
        if len(x) in SPARSE_BATCHES:
            for density, one in csr.items():
                us = graph_microseconds([partial(then_sparse, call, x, one) for call in calls])
                self.add(f"{name} + cuSPARSE", len(x), density, us)

    def peer(self, one: Checked) -> None:
        peer = one.peer
        packed = [peer.pack(base) for base in self.bases]
        halves = {density: half_precision(csr) for density, csr in self.csr.items()}
        for batch in (batch for batch in self.batches if batch <= peer.most_rows):
            x = self.input(batch, peer.dtype)

            def calls(variant: str, streams: list[Tensors | None], x: Tensor = x) -> Calls:
                pairs = zip(packed, streams, strict=True)
                return [partial(peer.multiply, x, pack, s, variant) for pack, s in pairs]

            none: list[Tensors | None] = [None] * len(packed)
            times = {v: graph_microseconds(calls(v, none)) for v in one.variants}
            best = min(times, key=times.__getitem__)
            more = {"variant": best} if best else {}
            self.add(peer.name, batch, 0, times[best], **more)
            for density, csr in self.csr.items() if peer.takes_streams else ():
                own: list[Tensors | None] = [peer.pack_stream(csr.clone()) for _ in packed]
                self.add(peer.name, batch, density, graph_microseconds(calls(best, own)), **more)
            if peer.name == "Marlin":
                self.naive(peer.name, x, calls(best, none), halves)


def chain(batches: Sequence[int], passed: Sequence[Checked], rows: Rows) -> None:
    """ms for the 128 linears of the 8B shape, in order, each with weights of its own."""
    order = [shape for _ in range(LAYERS) for shape in CHAIN]

    def inputs(batch: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        one = {k: torch.randn(batch, k, device="cuda").to(dtype) for _, k in CHAIN}
        return [one[columns] for _, columns in order]

    def add(name: str, batch: int, calls: Calls) -> None:
        ms = graph_microseconds(calls) * len(calls) / 1000
        rows.append({"chain": name, "batch": batch, "linears": len(calls), "ms": round(ms, 4)})

    bases = [random_base(*shape) for shape in order]
    csr = {shape: random_csr(*shape, 0.01) for shape in CHAIN}
    streams = {shape: tiled(one) for shape, one in csr.items()}
    own = [copied(streams[shape]) for shape in order]
    for m in batches:
        before = ops.native_op_calls()
        x = inputs(m)
        none = torch.zeros(0, m, device="cuda")
        calls = [partial(fused, i, none, b) for i, b in zip(x, bases, strict=True)]
        add("libortho base", m, calls)
        for name in (0.0, 1.0):
            alpha = torch.full((1, m), name, device="cuda")
            calls = [partial(fused, i, alpha, b, s) for i, b, s in zip(x, bases, own, strict=True)]
            add(f"libortho alpha {name:.0f}, density 0.01", m, calls)
        counted = ops.native_op_calls() - before
        expected = 3 * (len(order) + 2)  # two calls to warm up and one capture each
        if counted != expected:
            raise VoidRun(
                f"the chain at {m} rows made {counted} native calls, expected {expected}: another "
                "kernel was timed. LIBORTHO_BACKEND=native makes a fallback an error"
            )
    del own, calls
    for one in passed:
        if not one.peer.takes_streams:
            _chain_of(one, bases, csr, batches, inputs, add)
    del bases
    tiny = [tinygemm_weight(*shape) for shape in order]
    for m in batches:
        add("tinygemm", m, [partial(tinygemm, i, w) for i, w in zip(inputs(m), tiny, strict=True)])
    del tiny
    dense = [torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_() for shape in order]
    for m in batches:
        add("bf16", m, [partial(linear, i, w) for i, w in zip(inputs(m), dense, strict=True)])


def _chain_of(
    one: Checked,
    bases: Sequence[BaseTiles],
    csr: dict[tuple[int, int], Tensor],
    batches: Sequence[int],
    inputs: Callable[[int, torch.dtype], list[Tensor]],
    add: Callable[[str, int, Calls], None],
) -> None:
    peer = one.peer
    packed = [peer.pack(base) for base in bases]
    halves = {shape: half_precision(matrix) for shape, matrix in csr.items()}
    own = [halves[base.shape].clone() for base in bases]
    for m in batches:
        x = inputs(m, peer.dtype)
        for variant in one.variants:
            pairs = zip(x, packed, strict=True)
            calls = [partial(peer.multiply, i, pack, None, variant) for i, pack in pairs]
            add(f"{peer.name} {variant}".strip(), m, calls)
        if peer.name == "Marlin":
            triples = zip(calls, x, own, strict=True)
            both = [partial(then_sparse, call, i, s) for call, i, s in triples]
            add(f"{peer.name} + cuSPARSE, density 0.01", m, both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--commit", required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and batches")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, metavar="LIBRARY", help="see peers/README.md")
    options = parser.parse_args()
    began = time.monotonic()
    backend = ops.cuda_backend()
    if backend.name != "native":
        raise BackendUnavailable(
            f"the backend on CUDA is {backend.name}, expected native: {backend.reason}"
        )
    torch.manual_seed(0)
    clocks = "nvidia-smi --query-gpu=clocks.sm,clocks.mem --format=csv,noheader"
    shapes = SHAPES[1:5:3] if options.quick else SHAPES
    batches = [1, 16] if options.quick else [1, 4, 8, 16, 32, 64]
    chained = [1, 8] if options.quick else [1, 8, 32]
    libraries = {kind: getattr(options, kind) for kind in KINDS}
    every = sorted({*shapes, *CHAIN}), sorted({*batches, *chained})
    passed, skipped = checked(libraries, *every)
    linears: Rows = []
    linked: Rows = []
    chain(chained, passed, linked)
    for shape in shapes:
        single = Single(shape, batches, linears)
        single.torch_kernels()
        single.own()
        for one in passed:
            single.peer(one)
    result = {
        "commit": options.commit,
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name(0),
        "clocks": subprocess.run(clocks.split(), capture_output=True, text=True).stdout.strip(),
        "torch": torch.__version__,
        "group_size": GROUP,
        "replays": REPLAYS,
        "seconds": round(time.monotonic() - began, 1),
        "checked": {
            one.peer.name: {"error": one.error, "most_rows": one.peer.most_rows, "wrong": one.wrong}
            for one in passed
        },
        "skipped": skipped,
        "linears": linears,
        "chains": linked,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for row in linked + linears:
        print(*row.values())
    for name, why in skipped.items():
        print(f"skipped: {name}: {why}")


if __name__ == "__main__":
    main()
