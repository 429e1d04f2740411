"""``performance``: how fast a whole model decodes, and where the time goes by batch and density."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any

import torch
from transformers import LlamaConfig

from libortho import bench, ops
from libortho.bench.kernels import FLOOR
from libortho.experiments.decode import (
    CPU,
    EIGHT_BILLION,
    ONE_BILLION,
    STREAM,
    Decoded,
    Models,
    decode,
    random_models,
)
from libortho.experiments.recorded import decode_recorded
from libortho.experiments.verdict import Check, as_json, exactly, judge
from libortho.linear import CsrStream
from libortho.model import linears, memory
from libortho.progress import Progress, silent
from libortho.records import Record, new

NAME = "performance"
BATCHES = (1, 8, 32)
DENSITY = 0.01
STEPS = 12
KERNEL_SHAPE = (4096, 4096)
KERNEL_ROWS = (1, 2, 4, 8, 16, 32, 64)
KERNEL_DENSITIES = (0.005, 0.01, 0.02, 0.05)
KERNEL_ROUNDS = 20
FP_BYTES = 2
NOT_RUN = {
    "The fused op against vLLM's own INT4 kernel, on a GPU": (
        'libortho bench --device cuda --peer "vllm int4"'
    ),
}


def performance(
    *,
    seed: int = 0,
    config: LlamaConfig | None = None,
    batches: Sequence[int] = BATCHES,
    steps: int = STEPS,
    kernel_shape: tuple[int, int] = KERNEL_SHAPE,
    kernel_rounds: int = KERNEL_ROUNDS,
    device: torch.device = CPU,
    progress: Progress = silent,
) -> Record:
    """Decodes and times one layer, and says VOID where our kernel did not run.

    Args:
        config: shape of the model, whose weights are random; by default that of Llama-3.2-1B on a
            CPU, and of Llama-3-8B on a GPU, where a step of every state is compiled and recorded
            as a CUDA graph.
        steps: timed tokens a sequence, every state once a step.
        kernel_shape: N, K of the layer whose latency is drawn against M and density.
    """
    gpu = device.type == "cuda"
    if config is None:
        config = EIGHT_BILLION if gpu else ONE_BILLION
    backend = ops.cuda_backend() if gpu else ops.backend()
    models = random_models(config, DENSITY, seed, progress, device)
    sizes = _bytes(models)
    found = {
        batch: decode_recorded(models, batch, steps, device, progress)
        if gpu
        else decode(models, batch, steps, progress)
        for batch in batches
    }
    converted = len(linears(models.streamed))
    del models
    gc.collect()
    kernels = _kernels(kernel_shape, kernel_rounds, device, progress)
    checks = _checks(found, backend.name)
    verdict, reason = judge(checks)
    methods = _methods(found, sizes)
    first = batches[0]
    return new(
        NAME,
        verdict,
        n=steps,
        seeds=[seed],
        backend=f"native {backend.isa}" if backend.name == "native" else backend.name,
        reason=reason,
        config={
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "layers": config.num_hidden_layers,
            "vocabulary": config.vocab_size,
            "parameters": sizes["parameters"],
            "converted_linears": converted,
            "fused": True,
            "density": DENSITY,
            "dtype": "bfloat16",
            "device": device.type,
            "batches": list(batches),
        },
        figures={
            "checks": as_json(checks),
            f"speedup_alpha0_batch{first}": _over(found[first], "fp", "alpha0"),
            f"speedup_int4_batch{first}": _over(found[first], "fp", "int4"),
            f"alpha1_over_alpha0_batch{first}": _over(found[first], "alpha1", "alpha0"),
            "native_op_calls": _total(found, "native_op_calls"),
            "expected_op_calls": _total(found, "expected_op_calls"),
            "dense_route_calls": _total(found, "dense_route_calls"),
            "energy": "not measured: no counter of this machine is read",
        },
        methods=methods,
        raw={"kernels": kernels},
        not_run=NOT_RUN,
    )


def _checks(found: Mapping[int, Mapping[str, Decoded]], backend: str) -> list[Check]:
    checks = [exactly("backend", backend, "native", "VOID")]
    for batch, states in found.items():
        for name, one in states.items():
            if name == "fp":
                continue
            where = f"batch {batch}, {name}"
            calls, expected = one.native_op_calls, one.expected_op_calls
            checks.append(exactly(f"{where}: native calls", calls, expected, "VOID"))
            checks.append(exactly(f"{where}: dense-route calls", one.dense_route_calls, 0, "VOID"))
    return checks


def _methods(
    found: Mapping[int, Mapping[str, Decoded]], sizes: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    methods: dict[str, dict[str, Any]] = {}
    for batch, states in found.items():
        for name, one in states.items():
            method = methods.setdefault(name, {"raw": {}})
            low, middle, high = (1e3 * value for value in quantiles(one.seconds, n=4))
            method[f"ms_per_token_batch{batch}"] = middle
            method[f"ms_per_token_quartiles_batch{batch}"] = [low, high]
            method[f"tokens_per_second_batch{batch}"] = batch / median(one.seconds)
            method[f"times_faster_than_fp_batch{batch}"] = _over(states, "fp", name)
            method["raw"][f"seconds_batch{batch}"] = one.seconds
    for name, method in methods.items():
        method["bytes_memory"] = sizes["fp" if name == "fp" else "int4"]
        method["bytes_disk"] = sizes["fp_disk" if name == "fp" else "int4_disk"]
        if name not in ("fp", "int4"):
            method["bytes_memory"] += sizes["stream"]
            method["bytes_disk"] += sizes["stream_disk"]
    return methods


def _bytes(models: Models) -> dict[str, int]:
    """Memory as it is held; disk as the formats store it: int32 indices and fp16 values."""
    inside = memory(models.streamed)
    parameters = sum(tensor.numel() for tensor in models.floating.parameters())
    layers = [
        part.layer()
        for module in linears(models.streamed).values()
        if isinstance(part := module.part(STREAM), CsrStream)
    ]
    base = linears(models.base).values()
    converted = sum(module.base.tiles.nbytes + module.base.scales.nbytes for module in base)
    others = FP_BYTES * (parameters - sum(_count(module.base.shape) for module in base))
    return {
        "parameters": parameters,
        "fp": sum(tensor.nbytes for tensor in models.floating.parameters()),
        "fp_disk": FP_BYTES * parameters,
        "int4": inside["base"],
        "int4_disk": converted + others,
        "stream": sum(size for name, size in inside.items() if name != "base"),
        "stream_disk": sum(
            layer.indptr.nbytes + layer.indices.nbytes + layer.values.nbytes for layer in layers
        ),
    }


def _count(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


def _kernels(
    shape: tuple[int, int], rounds: int, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """One layer: base only and peers by M at 1%, and α = 1 by density at M = 1."""
    by_rows, skipped = bench.measure(
        [shape],
        KERNEL_ROWS,
        (DENSITY,),
        ["torch bf16", "aten int4"],
        device,
        rounds=rounds,
        progress=progress,
    )
    by_density, _ = bench.measure(
        [shape], [1], KERNEL_DENSITIES, [], device, rounds=rounds, progress=progress
    )
    ideal = next(one.microseconds[1] for one in by_rows if one.name == FLOOR and one.rows == 1)
    base = shape[0] * shape[1] * (0.5 + 2 / 128)
    return {
        "shape": list(shape),
        "rounds": rounds,
        "read_gbytes": base / ideal / 1e3,
        "ideal_microseconds": ideal,
        "skipped": skipped,
        "by_rows": [_line(one) for one in by_rows if one.name != FLOOR],
        "by_density": [_line(one) for one in by_density if one.name != FLOOR],
    }


def _line(one: bench.Measurement) -> dict[str, Any]:
    low, middle, high = one.microseconds
    return {
        "name": one.name,
        "rows": one.rows,
        "microseconds": middle,
        "quartiles": [low, high],
        "over_base": one.over_base,
    }


def _over(states: Mapping[str, Decoded], over: str, under: str) -> float:
    return median(states[over].seconds) / median(states[under].seconds)


def _total(found: Mapping[int, Mapping[str, Decoded]], counter: str) -> int:
    return sum(getattr(one, counter) for states in found.values() for one in states.values())
