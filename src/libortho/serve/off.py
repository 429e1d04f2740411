"""Refuses α where libortho is installed and its plugin was not loaded.

An entry point of its own (``vllm.logits_processors``): vLLM asks these classes to check a request's
parameters even where ``VLLM_PLUGINS`` leaves the plugin out. Logits are never touched.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor.interface import LogitsProcessor

from libortho.serve import plugin
from libortho.serve.requests import FIELD

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import (
        LogitsProcessor as LogitsProcessorV2,
    )
except ImportError:  # a release whose V2 runner has no processors: it must start all the same
    LogitsProcessorV2 = object


class AlphaGuard(LogitsProcessor, LogitsProcessorV2):  # type: ignore[misc]
    """A processor for either model runner that changes no logits."""

    def __init__(self, *engine: Any) -> None:
        pass

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise ValueError, which vLLM answers with 400, for α that nobody would honour."""
        off = plugin.reason_off()
        if off and FIELD in (sampling_params.extra_args or {}):
            raise ValueError(f"{FIELD}: no stream is attached, the libortho plugin is off: {off}")

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        pass

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        return False

    def apply(self, logits: Any, *context: Any) -> Any:
        return logits
