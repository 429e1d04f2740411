"""A PEFT LoRA adapter read as factors: ΔW = scaling · B · A (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from libortho.errors import CheckpointError, UnsupportedLayer
from libortho.streams.layers import LowRankLayer

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NOT_PLAIN = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "alora_invocation_tokens",
)
_MOVING_STARTS = ("pissa", "corda", "olora", "loftq", "lora_ga", "mica")


def read_adapter(
    path: str | Path, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, LowRankLayer]:
    """Read a LoRA adapter as low-rank layers, in the adapter's own dtype.

    Args:
        path: a directory written by PEFT's ``save_pretrained``.
        shapes: the converted linears, (N, K) by name: only these can take a stream.

    Raises:
        CheckpointError: the files are missing or incomplete.
        UnsupportedLayer: the adapter is no plain LoRA, or touches what no stream can hold; the
            whole list.
    """
    directory = Path(path)
    config = PeftConfig.from_pretrained(str(directory))
    if not (directory / WEIGHTS).is_file():
        raise CheckpointError(f"{directory}: no {WEIGHTS}; save the adapter with safetensors")
    if not isinstance(config, LoraConfig):
        raise UnsupportedLayer(
            f"{directory}: a {config.peft_type} adapter; expected LoRA. Merge "
            "it into the checkpoint and give that with --tuned"
        )
    problems = unsupported_options(config)
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(directory / WEIGHTS).items():
        layer, kind = _split_name(name)
        if kind is None or layer not in shapes:
            problems.append(f"tensor {name} belongs to no converted linear")
        else:
            factors.setdefault(layer, {})[kind] = tensor
    layers = {}
    for layer, parts in factors.items():
        if set(parts) != {"lora_A", "lora_B"}:
            problems.append(f"{layer} has {', '.join(sorted(parts))} only")
            continue
        found = LowRankLayer(parts["lora_A"], parts["lora_B"], _scaling(config, layer))
        if found.shape != shapes[layer]:
            problems.append(f"{layer} is {found.shape}, the base has {shapes[layer]}")
        layers[layer] = found
    if problems:
        raise UnsupportedLayer(
            f"{directory}: " + "; ".join(problems) + ". Train the adapter on "
            "converted linears only, as a plain LoRA"
        )
    return layers


def unsupported_options(config: LoraConfig) -> list[str]:
    """The options of a LoRA that make it more than ΔW = scaling · B · A on linears, in words."""
    problems = [f"option {name} is set" for name in _NOT_PLAIN if getattr(config, name, None)]
    if config.bias != "none":
        problems.append(f"option bias is {config.bias!r}")
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(_MOVING_STARTS):
        problems.append(
            f"option init_lora_weights is {start!r}, which changes the base weights, too (PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=…) makes a plain LoRA of it)"
        )
    return problems


def _split_name(name: str) -> tuple[str, str | None]:
    stem = name.removeprefix(_PREFIX).removesuffix(".weight")
    layer, _, kind = stem.rpartition(".")
    return layer, kind if kind in ("lora_A", "lora_B") else None


def _scaling(config: LoraConfig, layer: str) -> float:
    rank_key = get_pattern_key((config.rank_pattern or {}).keys(), layer)
    alpha_key = get_pattern_key((config.alpha_pattern or {}).keys(), layer)
    rank = (config.rank_pattern or {}).get(rank_key, config.r)
    lora_alpha = (config.alpha_pattern or {}).get(alpha_key, config.lora_alpha)
    return float(lora_alpha / (math.sqrt(rank) if config.use_rslora else rank))
