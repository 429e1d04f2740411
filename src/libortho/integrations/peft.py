"""PEFT: a LoRA trained over a converted model, which `libortho split` then makes a stream.

PEFT refuses layers that it does not know, and an adapter_config.json does not say what knows them;
so a configuration is introduced to converted linears by :func:`over_streams`, whether the adapter
is new or loaded:

    peft.get_peft_model(model, over_streams(LoraConfig(...)))
    peft.PeftModel.from_pretrained(model, path, config=over_streams(PeftConfig.from_pretrained(path)))
"""  # noqa: E501

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftConfig
from peft.tuners.lora import Linear as LoraLinear

from libortho.errors import UnsupportedLayer
from libortho.fuse import FusedLinear, FusedPart
from libortho.linear import OrthoLinear
from libortho.split.adapter import unsupported_options


def over_streams(config: PeftConfig) -> LoraConfig:
    """Let a LoRA configuration apply to converted linears; returns it.

    Raises:
        UnsupportedLayer: it is no LoRA, or has options that no stream can keep (all are named).
    """
    if not isinstance(config, LoraConfig):
        raise UnsupportedLayer(f"a {type(config).__name__}; expected a LoraConfig")
    problems = unsupported_options(config)
    if problems:
        raise UnsupportedLayer(
            "a LoRA over converted linears must be a plain one, to become a stream: "
            + "; ".join(problems)
        )
    # The first that fits is taken.
    config._register_custom_module(
        {FusedPart: _refused, FusedLinear: _refused, OrthoLinear: OrthoLora}
    )
    return config


def _refused(*_: Any, **__: Any) -> None:
    raise UnsupportedLayer(
        "an adapter over a projection that is fused with others; load the model without fuse=True"
    )


class OrthoLora(LoraLinear):  # type: ignore[misc]
    """A LoRA over a converted linear: y = linear(x) + scaling · (x · Aᵀ) · Bᵀ.

    The gate of the linear acts as ever; the adapter itself is beside it, not behind it.
    """

    def merge(self, safe_merge: bool = False, adapter_names: Any = None) -> None:
        """Refused: an INT4 base has no place for a change.

        Raises:
            UnsupportedLayer: always.
        """
        raise UnsupportedLayer(
            "an adapter cannot be merged into an INT4 base; save it, and make it a stream: "
            "libortho split BASE --tuned ADAPTER -o BASE"
        )
