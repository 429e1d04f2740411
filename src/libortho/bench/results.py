"""What a benchmark leaves: one JSON file per machine, under ``benchmarks/results``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError

from libortho import ops, records
from libortho.bench.kernels import Measurement
from libortho.errors import FormatError
from libortho.records import Environment


class Benchmark(Environment):
    """Measurements of one machine.

    Attributes:
        device: ``cpu`` or ``cuda``.
        backend: what computed the op.
        skipped: ``peer, N×K, M`` → why it was not measured.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    device: str
    backend: str
    dtype: str
    rounds: int
    measurements: list[Measurement]
    skipped: dict[str, str]

    @property
    def machine(self) -> str:
        """A file name of the processor that was measured."""
        gpu = self.hardware.gpu if self.device == "cuda" else None
        name = gpu or f"{self.hardware.cpu} {self.hardware.cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def collect(
    found: Sequence[Measurement],
    skipped: Mapping[str, str],
    *,
    device: str,
    dtype: str,
    rounds: int,
) -> Benchmark:
    """Measurements that have just been made here, with what tells this machine."""
    backend = ops.cuda_backend() if device == "cuda" else ops.backend()
    return Benchmark(
        **dict(records.collect_environment()),
        device=device,
        backend=f"{backend.name} {backend.isa}",
        dtype=dtype,
        rounds=rounds,
        measurements=list(found),
        skipped=dict(skipped),
    )


def write(result: Benchmark, folder: Path) -> Path:
    """Write ``folder/<machine>.json`` and return its path."""
    path = folder / f"{result.machine}.json"
    records.write_atomic(path, result.model_dump_json(indent=1) + "\n")
    return path


def read(path: Path) -> Benchmark:
    """Read one file.

    Raises:
        FormatError: the file is absent or is no benchmark.
    """
    try:
        return Benchmark.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValidationError) as error:
        raise FormatError(f"{path} is not a benchmark of libortho: {error}") from error
