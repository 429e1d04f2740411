"""A converted model over several devices, by accelerate's device maps."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import (
    OffloadedWeightsLoader,
    PrefixedDataset,
    check_device_map,
    get_balanced_memory,
)
from torch import nn

from libortho.errors import ConfigError
from libortho.fuse import FusedLinear
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
        offload_folder: where modules mapped to ``disk`` are kept: in a folder of this model's own,
            which goes when the model does.

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
            offload_dir=_own_folder(model, offload_folder) if "disk" in placed.values() else None,
            # The tiles of a base are buffers of a part that is never called by itself.
            offload_buffers=True,
            preload_module_classes=[OrthoLinear.__name__, FusedLinear.__name__],
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"device_map: {error}") from error


def forget(model: nn.Module, stream: str) -> None:
    """Drop what is kept of a detached stream for offloaded modules, in memory and on disk."""
    inside = f".streams.{stream}."
    for weights in {id(one): one for one in _offloaded(model)}.values():
        for name in [name for name in weights.all_keys if inside in name]:
            weights.all_keys.remove(name)
            weights.state_dict.pop(name, None)
            if weights.index.pop(name, None) is not None:
                (Path(weights.save_folder) / f"{name}.dat").unlink()


def _offloaded(model: nn.Module) -> Iterator[OffloadedWeightsLoader]:
    """The stores that accelerate fetches offloaded modules from."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            weights = getattr(one, "weights_map", None)
            if isinstance(weights, PrefixedDataset):
                yield weights.dataset


def _own_folder(model: Any, folder: str | Path | None) -> str:
    """A new folder inside the one given: accelerate takes what lies in a used one for the model's
    own weights."""
    assert folder is not None
    Path(folder).mkdir(parents=True, exist_ok=True)
    own = tempfile.mkdtemp(prefix="libortho-", dir=folder)
    weakref.finalize(model, shutil.rmtree, own, ignore_errors=True)
    return own


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
