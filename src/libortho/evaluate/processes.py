"""Evaluation in another process: stock transformers, or a base that never met a stream."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from libortho import progress as _progress
from libortho.errors import LibOrthoError
from libortho.evaluate.digest import Digest
from libortho.evaluate.inputs import Batching, Inputs, as_dtype
from libortho.progress import Progress

STOCK_SCRIPT = Path(__file__).with_name("stock.py")
HEARTBEAT_SECONDS = 2.0
_TAIL_LINES = 40


@dataclass(frozen=True)
class StockWindows:
    """What stock transformers says about one set of windows.

    Attributes:
        nll: [n, T - 1] float32, of each predicted token in nats.
        gap: [n, T - 1] float32, the difference of the two largest logits.
        argmax: [n, T - 1] int64, the most likely id.
    """

    nll: Tensor
    gap: Tensor
    argmax: Tensor


@dataclass(frozen=True)
class StockSecrets:
    """What stock transformers says about one set of completions.

    Attributes:
        nll: [c] float64, of the whole completion in nats.
        matches: [c] int64, positions whose argmax is the true id.
        exact: [c] bool, greedy decoding recites the whole completion.
    """

    nll: Tensor
    matches: Tensor
    exact: Tensor


@dataclass(frozen=True)
class StockScores:
    """The result of ``run_stock``, by set; ``report`` holds versions and settings."""

    windows: Mapping[str, StockWindows]
    secrets: Mapping[str, StockSecrets]
    report: Mapping[str, Any]


def run_stock(
    directory: str | Path,
    inputs: Inputs,
    *,
    dtype: str = "float32",
    threads: int | None = None,
    batching: Batching | None = None,
    progress: Progress = _progress.silent,
) -> StockScores:
    """Evaluate a checkpoint directory in stock transformers, libortho never imported.

    Args:
        directory: any checkpoint that ``AutoModelForCausalLM`` loads, such as a base.
        inputs: windows and secrets.
        dtype: float32, bfloat16 or float16.
        threads: of the child; by default those of this process.
        batching: sequences a forward.

    Raises:
        LibOrthoError: with the end of the child's output, where it failed.
    """
    with tempfile.TemporaryDirectory(prefix="libortho-stock-") as folder:
        # -I: neither PYTHONPATH nor the working directory may bring anything of ours in.
        output = _run_job(
            [sys.executable, "-I", str(STOCK_SCRIPT)],
            {"model": str(Path(directory).resolve())},
            Path(directory),
            inputs,
            dtype,
            threads,
            batching,
            Path(folder),
            "stock",
            progress,
        )
        with safe_open(output, framework="pt") as file:
            report = json.loads(file.metadata()["report"])
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return StockScores(
        {
            name: StockWindows(*(found[f"windows.{name}.{k}"] for k in ("nll", "gap", "argmax")))
            for name in inputs.windows
        },
        {
            name: StockSecrets(*(found[f"secrets.{name}.{k}"] for k in ("nll", "matches", "exact")))
            for name in inputs.secrets
        },
        report,
    )


def run_probe(
    base: str | Path,
    inputs: Inputs,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int | None = None,
    batching: Batching | None = None,
    progress: Progress = _progress.silent,
) -> Digest:
    """Digest the logits of a base through libortho in a process that opens no stream.

    Compare with ``digest`` of the gated model, with ``differences``, at the same threads.

    Raises:
        LibOrthoError: with the end of the child's output, where it failed.
    """
    with tempfile.TemporaryDirectory(prefix="libortho-probe-") as folder:
        output = _run_job(
            [sys.executable, "-m", "libortho.evaluate.probe"],
            {"base": str(Path(base).resolve()), "device": device},
            Path(base),
            inputs,
            dtype,
            threads,
            batching,
            Path(folder),
            "probe",
            progress,
        )
        return Digest.read(output)


def _run_job(
    command: list[str],
    job: dict[str, object],
    directory: Path,
    inputs: Inputs,
    dtype: str,
    threads: int | None,
    batching: Batching | None,
    folder: Path,
    stage: str,
    progress: Progress,
) -> Path:
    """Write the job's files, run the child and return its output file."""
    as_dtype(dtype)
    vocabulary = json.loads((directory / "config.json").read_text("utf-8"))["vocab_size"]
    sizes = batching or Batching.fitting(inputs, vocabulary)
    output = folder / "output.safetensors"
    inputs.write(folder / "inputs.safetensors")
    settings = {
        **job,
        "dtype": dtype,
        "threads": threads or torch.get_num_threads(),
        "inputs": str(folder / "inputs.safetensors"),
        "output": str(output),
        "window_batch": sizes.windows,
        "secret_batch": sizes.secrets,
    }
    (folder / "job.json").write_text(json.dumps(settings), "utf-8")
    run_child([*command, str(folder / "job.json")], stage, progress)
    return output


def run_child(
    command: Sequence[str], stage: str, progress: Progress, *, offline: bool = True
) -> None:
    """Run a child that reports progress as JSON lines; other lines are kept for its failure.

    ``progress`` is called at least every ``HEARTBEAT_SECONDS``, with ``waited`` seconds in its
    info where the child said nothing.

    Args:
        offline: keep the child from asking the hub for anything.

    Raises:
        LibOrthoError: where the child's exit status is not 0.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    }
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    last: tuple[str, int, int] = (stage, 0, 1)
    heard = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        assert process.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        try:
            while True:
                try:
                    line = lines.get(timeout=HEARTBEAT_SECONDS)
                except queue.Empty:
                    progress(*last, {"waited": round(time.monotonic() - heard, 1)})
                    continue
                if line is None:
                    break
                event = _event(line)
                if event is None:
                    tail.append(line.rstrip())
                    continue
                heard = time.monotonic()
                last = (event["stage"], event["done"], event["total"])
                progress(*last, event["info"])
        finally:
            if process.poll() is None:
                # A closed pipe means that the child is ending; otherwise we are being interrupted.
                if sys.exc_info()[0] is not None:
                    process.kill()
                process.wait()
    if process.returncode != 0:
        raise LibOrthoError(
            f"the {stage} process ended with status {process.returncode}: {' '.join(command)}\n"
            + "\n".join(tail)
        )


def _pump(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"stage"'):
        return None
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return None
    return event if event.keys() == {"stage", "done", "total", "info"} else None
