"""Language models in two streams: a public INT4 base and private streams behind a gate."""

from libortho.audit import audit
from libortho.errors import LibOrthoError
from libortho.gate import alpha
from libortho.linear import OrthoLinear
from libortho.model import attach, call_region, detach, load, memory
from libortho.quantize import quantize
from libortho.repair import repair
from libortho.split import split
from libortho.tune import TuneOptions, tune
from libortho.verify import verify

__all__ = [
    "LibOrthoError",
    "OrthoLinear",
    "TuneOptions",
    "alpha",
    "attach",
    "audit",
    "call_region",
    "detach",
    "load",
    "memory",
    "quantize",
    "repair",
    "split",
    "tune",
    "verify",
]
