"""A converted model over several devices, by accelerate's device maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import check_device_map, get_balanced_memory

from libortho.errors import ConfigError
from libortho.linear import OrthoLinear
from libortho.outside import has_outside

AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")


def dispatch(
    model: Any, device_map: str | Mapping[str, Any], offload_folder: str | Path | None = None
) -> None:
    """Move the modules of a converted model to devices, and let their inputs follow.

    Args:
        model: streams attached.
        device_map: one of ``AUTOMATIC``, or module name to device, ``cpu`` or ``disk``.
        offload_folder: where modules mapped to ``disk`` are kept.

    Raises:
        ConfigError: a map that accelerate does not take, or that would part embeddings, norms or
            the head from what a stream changes in them.
    """
    placed = _mapped(model, device_map)
    if has_outside(model) and len(set(map(str, placed.values()))) > 1:
        raise ConfigError(
            "an attached stream changes embeddings, norms, biases or the head, which a device_map "
            "of several devices would part from it; load the model with device=…"
        )
    if "disk" in placed.values() and offload_folder is None:
        raise ConfigError("device_map sends modules to disk: give offload_folder, too")
    try:
        check_device_map(model, placed)
        dispatch_model(
            model,
            placed,
            offload_dir=offload_folder,
            # The tiles of a base are buffers of a part that is never called by itself.
            offload_buffers=True,
            preload_module_classes=[OrthoLinear.__name__],
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"device_map: {error}") from error


def _mapped(model: Any, device_map: str | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(device_map, str):
        return dict(device_map)
    if device_map not in AUTOMATIC:
        raise ConfigError(
            f"device_map {device_map!r}; expected one of {', '.join(AUTOMATIC)}, or a mapping"
        )
    whole = sorted(model._no_split_modules or [])
    room = None
    if device_map != "sequential":
        room = get_balanced_memory(
            model, no_split_module_classes=whole, low_zero=device_map == "balanced_low_0"
        )
    found: dict[str, Any] = infer_auto_device_map(
        model, max_memory=room, no_split_module_classes=whole
    )
    return found
