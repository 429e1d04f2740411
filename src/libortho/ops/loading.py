"""Which implementation runs here, and why: decided once, by one function.

Order: the library packaged in the wheel, a library compiled on this machine and cached under
``~/.cache/libortho`` (or ``$XDG_CACHE_HOME/libortho``), the plain-torch reference.
``LIBORTHO_BACKEND=native`` turns the fall to the reference into an error, ``=reference`` asks for
it; ``LIBORTHO_ISA=scalar|avx2|avx512|avx512bf16`` chooses the instruction set.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from libortho.errors import BackendUnavailable, ConfigError
from libortho.ops import build, reference
from libortho.ops.autograd import register_derivatives
from libortho.ops.schema import SCHEMAS, register_fakes

_log = logging.getLogger(__name__)
_ISAS = ("scalar", "avx2", "avx512", "avx512bf16")
_PACKAGED = Path(__file__).resolve().parent.parent / "_native.abi3.so"


@dataclass(frozen=True)
class Backend:
    """What runs ``libortho::dual_linear`` on the CPU.

    Attributes:
        name: ``native`` or ``reference``.
        isa: ``scalar``, ``avx2``, ``avx512`` or ``avx512bf16``; ``torch`` for the reference.
        reason: why this one was chosen, one sentence.
        library: the shared library, None for the reference.
    """

    name: str
    isa: str
    reason: str
    library: Path | None


_chosen: Backend | None = None
_lock = threading.Lock()
_definitions: list[torch.library.Library] = []


def backend() -> Backend:
    """Loads an implementation on the first call and says which one it is.

    Raises:
        BackendUnavailable: ``LIBORTHO_BACKEND=native`` but no library loads, or ``LIBORTHO_ISA``
            names an instruction set that this CPU lacks.
        ConfigError: an unknown value of ``LIBORTHO_BACKEND``.
    """
    global _chosen
    with _lock:
        if _chosen is None:
            _chosen = _choose()
        return _chosen


def is_loaded() -> bool:
    """Whether ``backend`` has already chosen."""
    return _chosen is not None


def _choose() -> Backend:
    wanted = os.environ.get("LIBORTHO_BACKEND", "")
    if wanted not in ("", "native", "reference"):
        raise ConfigError(f"LIBORTHO_BACKEND must be native or reference, found {wanted!r}")
    if wanted == "reference":
        return _use_reference("LIBORTHO_BACKEND=reference")
    failures = []
    for attempt in (_load_packaged, _load_compiled):
        try:
            library, reason = attempt()
        except (build.BuildError, OSError) as error:
            failures.append(str(error))
        else:
            return _use_native(library, reason)
    cause = "; ".join(failures)
    if wanted == "native":
        raise BackendUnavailable(f"LIBORTHO_BACKEND=native, but no native library loads: {cause}")
    _log.warning(
        "libortho runs on the slow plain-torch reference: %s. Install g++ and start again, or set "
        "LIBORTHO_BACKEND=reference to choose this.",
        cause,
    )
    return _use_reference(f"no native library loads: {cause}")


def _load_packaged() -> tuple[Path, str]:
    if not _PACKAGED.exists():
        raise build.BuildError("no packaged library")
    if not build.matches_sources(_PACKAGED):
        raise build.BuildError(f"{_PACKAGED} was built from other sources")
    torch.ops.load_library(str(_PACKAGED))
    return _PACKAGED, "packaged library"


def _load_compiled() -> tuple[Path, str]:
    key = hashlib.sha256(f"{build.source_key()} torch {torch.__version__}".encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "libortho"
    library = cache / f"native-{key[:24]}.so"
    reason = "compiled on this machine"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):
            if not library.exists():
                _log.info("compiling the native kernels into %s (about half a minute)", library)
                build.build(library, Path(torch.__file__).parent)
    torch.ops.load_library(str(library))
    return library, reason


def _use_native(library: Path, reason: str) -> Backend:
    try:
        isa = _ISAS[torch.ops.libortho.isa()]
    except RuntimeError as error:  # LIBORTHO_ISA asks for what is not there
        raise BackendUnavailable(str(error).splitlines()[0]) from error
    _register("CUDA")
    return Backend("native", isa, reason, library)


def _use_reference(reason: str) -> Backend:
    definitions = torch.library.Library("libortho", "DEF")
    for schema in SCHEMAS:
        definitions.define(schema)
    _definitions.append(definitions)  # the ops live as long as this object
    _register("CPU", "CUDA")
    return Backend("reference", "torch", reason, None)


def _register(*devices: str) -> None:
    implementations = torch.library.Library("libortho", "IMPL")
    for device in devices:
        implementations.impl("dual_linear", reference.dual_linear, device)
        implementations.impl("dual_linear_backward", reference.dual_linear_backward, device)
        implementations.impl("add_streams", reference.add_streams, device)
    _definitions.append(implementations)
    register_fakes()
    register_derivatives()
