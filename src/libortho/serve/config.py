"""vLLM's compressed-tensors configuration, extended by the streams that lie beside the base."""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
    CompressedTensorsLinearMethod,
)

from libortho.errors import UnsupportedLayer
from libortho.serve.attached import Attached, find_attached
from libortho.serve.linear import OrthoLinearMethod
from libortho.serve.rows import AlphaRows
from libortho.streams.base import BaseStream

_log = logging.getLogger("vllm.libortho")


class OrthoConfig(CompressedTensorsConfig):  # type: ignore[misc]
    """The stock configuration where no stream is attached.

    Made in the API process and pickled to the engine core and to every worker.

    Attributes:
        attached: the streams of this engine.
        read: (stream, layer) pairs that this worker has loaded.
        bytes: per stream, what this worker holds of it in memory.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attached = Attached(reason="the engine was configured without a model path")
        self.read: set[tuple[str, str]] = set()
        self.bytes: Counter[str] = Counter()
        self._names: dict[str, str] = {}
        self._path = ""
        self._base: BaseStream | None = None
        self._tokens = 0
        self._rows: AlphaRows | None = None

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Open the streams; vLLM calls this when it makes the engine's configuration."""
        super().maybe_update_config(model_name, hf_config, revision)
        self.attached = find_attached(model_name, os.environ)
        if not self.attached.streams:
            _log.info("libortho: base alone: %s", self.attached.reason)
            return
        self._path = model_name
        self._names = {stem: name for name, stem in BaseStream.open(model_name).stems.items()}
        if hf_config is not None:
            # vLLM keys compiled graphs by the model's configuration, and not by this one.
            hf_config.libortho_streams = self.attached.fingerprint()
        for stream in self.attached.streams:
            info = stream.info
            kind = "public" if info.public else "not public"
            _log.info(
                "libortho: stream %s (%s, id %s…) attached and closed, %.1f MB in %d layers",
                info.name, kind, info.id[:12], stream.bytes / 1e6, len(stream.layers),
            )  # fmt: skip

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Follow vLLM's renaming of modules, for the layers of streams too."""
        super().apply_vllm_mapper(hf_to_vllm_mapper)
        renamed = {hf_to_vllm_mapper.map_name(new): old for new, old in self._names.items()}
        self._names = {new: old for new, old in renamed.items() if new is not None}

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """The stock method, extended on the linears that some stream holds a part of."""
        method = super().get_quant_method(layer, prefix)
        if not self.attached.streams or not isinstance(layer, LinearBase):
            return method
        names = self._projections(prefix)
        if not set(names) & self.attached.layers:
            return method
        if type(method) is not CompressedTensorsLinearMethod:
            raise UnsupportedLayer(
                f"{prefix}: a stream on a layer that vLLM runs by {type(method).__name__} "
                "cannot be served"
            )
        if not self._tokens:
            engine = get_current_vllm_config()
            sizes = engine.compilation_config.cudagraph_capture_sizes or [0]
            self._tokens = engine.scheduler_config.max_num_batched_tokens + max(sizes)
        return OrthoLinearMethod(self, names, prefix)

    def _projections(self, prefix: str) -> list[str]:
        """Names in the base of the projections that vLLM joins into the layer ``prefix``."""
        parent, _, last = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(last, [last])
        joined = [f"{parent}.{part}" if parent else part for part in parts]
        return [self._names[name] for name in joined if name in self._names]

    def base(self) -> BaseStream:
        """The base on disk, opened in this process."""
        if self._base is None:
            self._base = BaseStream.open(self._path)
        return self._base

    @property
    def rows(self) -> AlphaRows | None:
        """α of the tokens of a step; None where no stream is loaded."""
        return self._rows

    def rows_on(self, device: torch.device) -> AlphaRows:
        """The buffer, made on the first call."""
        if self._rows is None:
            self._rows = AlphaRows(len(self.attached.streams), self._tokens, device)
        return self._rows

    def check_complete(self) -> None:
        """Check that this worker has loaded every layer of every stream, as it was attached.

        Raises:
            UnsupportedLayer: layers were not loaded; all of them are named.
            CorruptStream: files are others by now than those that the engine was configured for.
        """
        wanted = {
            (stream.info.name, layer) for stream in self.attached.streams for layer in stream.layers
        }
        missing = sorted(wanted - self.read)
        if missing:
            listed = ", ".join(f"{name}: {layer}" for name, layer in missing)
            raise UnsupportedLayer(
                "vLLM runs these layers in a way that streams cannot be added to, so that "
                f"requests would be answered without them: {listed}"
            )
        # What was read is what stands there now: the hash is taken after the reading.
        self.attached.check_unchanged()
        for name, size in sorted(self.bytes.items()):
            _log.info("libortho: stream %s takes %.1f MB of this worker's memory", name, size / 1e6)


def ortho_config(vllm_config: Any) -> OrthoConfig | None:
    """The configuration of an engine that has streams attached; None for any other engine."""
    config = getattr(vllm_config, "quant_config", None)
    return config if isinstance(config, OrthoConfig) and config.attached.streams else None


def attached_to(vllm_config: Any) -> Attached:
    """What an engine has attached, or why nothing."""
    config = getattr(vllm_config, "quant_config", None)
    if isinstance(config, OrthoConfig):
        return config.attached
    return Attached(reason="the model is not a compressed-tensors checkpoint")


def register_config() -> None:
    """Put this class in the place of the stock one, under the same name."""
    register_quantization_config("compressed-tensors")(OrthoConfig)
