"""Engine options under which a stream could act on the wrong rows or not at all, or is untested."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from libortho.errors import ConfigError
from libortho.serve.config import ortho_config


def hook_engine() -> None:
    """Check every engine's configuration when it is made."""
    from vllm.config import VllmConfig

    original: Callable[[Any], None] = VllmConfig.__post_init__

    @functools.wraps(original)
    def __post_init__(self: Any) -> None:  # noqa: N807
        original(self)
        if ortho_config(self) is not None:
            check_engine(self)

    VllmConfig.__post_init__ = __post_init__


def check_engine(engine: Any) -> None:
    """Raise ConfigError with every option of a ``VllmConfig`` that streams cannot be served under.

    The base alone is served under any of them.
    """
    problems = [reason for refused, reason in _options(engine) if refused]
    if problems:
        raise ConfigError(
            "streams are attached, and these options of the engine are refused: "
            + "; ".join(problems)
            + ". Leave them out, or set LIBORTHO_STRICT=1 to serve the base alone"
        )


def _options(engine: Any) -> list[tuple[bool, str]]:
    parallel, model = engine.parallel_config, engine.model_config
    return [
        (
            engine.kv_transfer_config is not None,
            "a KV connector (it may share cached keys and values across alpha)",
        ),
        (
            engine.ec_transfer_config is not None,
            "an encoder-cache connector (it may share states across alpha)",
        ),
        (engine.speculative_config is not None, "speculative decoding (not tested)"),
        (engine.lora_config is not None, "LoRA (not tested)"),
        (model.runner_type != "generate", "a pooling model (its requests carry no alpha)"),
        (model.is_multimodal_model, "a multimodal model (its encoder's rows are not tokens)"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism (not tested)"),
        (parallel.data_parallel_size > 1, "data parallelism inside one engine (run replicas)"),
        (
            parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1,
            "context parallelism (rows are not in batch order)",
        ),
        (parallel.use_ubatching, "microbatches (rows are not in batch order)"),
        (
            engine.cache_config.kv_sharing_fast_prefill,
            "fast prefill (some layers run on a part of the rows)",
        ),
        (
            model.use_mla,
            "multi-head latent attention (it folds a projection away when alpha is still 0)",
        ),
        (model.enable_sleep_mode, "sleep mode (weights would come back without streams)"),
    ]
