"""Engines for the tests: processes with and without libortho."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PLUGIN = Path(sys.prefix) / "plugin"
"""Holds the entry points of libortho, which is not installed in the environment itself."""

OPTIONS: dict[str, Any] = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 320,
    "block_size": 32,
    "num_gpu_blocks_override": 22,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "seed": 0,
    "disable_log_stats": True,
}
"""Small enough that eight requests preempt each other and prompts are read in chunks."""


class EngineFailed(Exception):
    """The engine's process answered with an exception; the text is its own."""


def environment(plugin: bool, **variables: str) -> dict[str, str]:
    """Environment variables of an engine; without the plugin libortho cannot be imported."""
    path = [str(PLUGIN), str(ROOT / "src")] if plugin else []
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LIBORTHO_", "VLLM_"))}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **variables,
    }


class Engine:
    """One process; methods of ``engine_process.Served`` are called by name.

    Args:
        log: file that takes the process's output.
        plugin: whether libortho can be found by it.
        variables: environment variables.
    """

    def __init__(self, log: Path, plugin: bool = True, **variables: str) -> None:
        self.log = log
        self._address = str(log.with_suffix(".socket"))
        key = secrets.token_hex(16)
        self._listener = Listener(self._address, authkey=key.encode())
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(HERE / "engine_process.py"), self._address],
                env={**environment(plugin, **variables), "ENGINE_KEY": key},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._connection = self._listener.accept()

    def start(self, model: Path, **options: Any) -> Engine:
        self.call("start", model=str(model), **{**OPTIONS, **options})
        return self

    def call(self, name: str, **arguments: Any) -> Any:
        """Run a method in the process; EngineFailed with what it raised."""
        self._connection.send((name, arguments))
        kind, value = self._connection.recv()
        if kind == "failed":
            raise EngineFailed(value)
        return value

    def generate(self, prompts: list[list[int]], alphas: list[Any], tokens: int = 8) -> Any:
        return self.call("generate", prompts=prompts, alphas=alphas, tokens=tokens)

    def stop(self) -> None:
        self._connection.close()
        self._listener.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
