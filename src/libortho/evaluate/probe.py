"""A process that knows a base and no stream: ``python -m libortho.evaluate.probe job.json``.

Its digest is what the gated model at alpha 0 must equal, bit for bit. The job is a JSON object:
base (a directory), dtype, device, threads, inputs and output (safetensors), window_batch,
secret_batch. Progress goes to stderr, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from libortho import model
from libortho.errors import LibOrthoError
from libortho.evaluate.digest import digest
from libortho.evaluate.inputs import Batching, Inputs, as_dtype


def forbid_streams(base: Path) -> None:
    """Make opening any file below ``base/ortho`` an error for the rest of the process."""
    streams = os.path.realpath(base / "ortho")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if os.path.realpath(os.fsdecode(arguments[0])).startswith(streams + os.sep):
            raise LibOrthoError(f"the probe must not open a stream: {os.fsdecode(arguments[0])}")

    sys.addaudithook(watch)


def mapped_streams(base: Path) -> list[str]:
    """Files below ``base/ortho`` that are mapped into this process, where Linux can tell.

    safetensors maps files without passing Python's audit hooks.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    streams = os.path.realpath(base / "ortho") + os.sep
    return sorted(
        {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if streams in line}
    )


def main(job_path: str) -> None:
    """Run one job."""
    job = json.loads(Path(job_path).read_text("utf-8"))
    base = Path(job["base"])
    forbid_streams(base)
    torch.set_num_threads(job["threads"])
    transformers_logging.disable_progress_bar()
    loaded = model.load(base, streams=[], dtype=as_dtype(job["dtype"]), device=job["device"])
    mapped = mapped_streams(base)
    if mapped:
        raise LibOrthoError(f"the probe mapped streams it must not open: {mapped}")
    found = digest(
        loaded,
        Inputs.read(Path(job["inputs"])),
        Batching(job["window_batch"], job["secret_batch"]),
        stage="probe",
        progress=_report,
    )
    found.write(Path(job["output"]))


def _report(stage: str, done: int, total: int, info: Mapping[str, object]) -> None:
    line = json.dumps({"stage": stage, "done": done, "total": total, "info": dict(info)})
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m libortho.evaluate.probe job.json")
    main(sys.argv[1])
