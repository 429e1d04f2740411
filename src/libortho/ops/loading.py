"""Which implementation runs here, and why: decided once, for the CPU and for CUDA apart.

Order: the library packaged in the wheel, a library compiled on this machine and cached under
``~/.cache/libortho`` (or ``$XDG_CACHE_HOME/libortho``), the plain-torch reference.
``LIBORTHO_BACKEND=native`` turns the fall to the reference into an error (for CUDA, once a CUDA
tensor comes), ``=reference`` asks for it; ``LIBORTHO_ISA=scalar|avx2|avx512|avx512bf16``
chooses the CPU's instruction set.

On CUDA the library serves x in float16 and bfloat16 with float16 values; float32 x, values that
are trained, and gradients run on the reference. Before its first use it is tried against the
reference on the device at hand (``trial``), and not used where the two disagree.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch.utils._python_dispatch import _disable_current_modes

from libortho.errors import BackendUnavailable, ConfigError
from libortho.ops import build, reference, trial
from libortho.ops.autograd import register_derivatives
from libortho.ops.schema import SCHEMAS, register_fakes

_log = logging.getLogger(__name__)
_ISAS = ("scalar", "avx2", "avx512", "avx512bf16")
_PACKAGED = Path(__file__).resolve().parent.parent / "_native.abi3.so"
_PACKAGED_CUDA = _PACKAGED.with_name("_native_cuda.abi3.so")


@dataclass(frozen=True)
class Backend:
    """What runs ``libortho::dual_linear`` on one kind of device.

    Attributes:
        name: ``native`` or ``reference``; for CUDA ``none`` where native was asked for in vain.
        isa: ``scalar``, ``avx2``, ``avx512``, ``avx512bf16`` or ``cuda``; ``torch`` for the
            reference.
        reason: why this one was chosen, one sentence.
        library: the shared library, None for the reference.
    """

    name: str
    isa: str
    reason: str
    library: Path | None


_chosen: Backend | None = None
_chosen_cuda: Backend | None = None
_cuda_tried = False
_trial_calls = 0
_lock = threading.Lock()
_definitions: list[torch.library.Library] = []


def backend() -> Backend:
    """Loads the implementations on the first call and says which one serves the CPU.

    Raises:
        BackendUnavailable: ``LIBORTHO_BACKEND=native`` but no library loads, or ``LIBORTHO_ISA``
            names an instruction set that this CPU lacks.
        ConfigError: an unknown value of ``LIBORTHO_BACKEND``.
    """
    global _chosen, _chosen_cuda
    with _lock:
        if _chosen is None:
            chosen = _choose()
            _chosen_cuda = _choose_cuda()
            _finish()
            _chosen = chosen
        return _chosen


def cuda_backend() -> Backend:
    """Which implementation serves CUDA tensors; raises as ``backend``."""
    backend()
    assert _chosen_cuda is not None
    return _chosen_cuda


def try_cuda() -> None:
    """Tries the CUDA kernel once on the current device; returns at once from then on.

    Nothing is tried while a CUDA graph is being captured.

    Raises:
        BackendUnavailable: ``LIBORTHO_BACKEND=native``, and the kernel disagrees with the
            reference.
    """
    global _chosen_cuda, _cuda_tried, _trial_calls
    if _cuda_tried:
        return
    chosen = cuda_backend()
    if chosen.name == "native" and torch.cuda.is_current_stream_capturing():
        return
    with _lock:
        if chosen.name == "native" and not _cuda_tried:
            calls = torch.ops.libortho.cuda_op_calls()
            with _disable_current_modes(), torch.no_grad():
                found = trial.disagreement(torch.ops.libortho.dual_linear.default, "cuda")
            _trial_calls = int(torch.ops.libortho.cuda_op_calls()) - int(calls)
            if found is not None:
                name = torch.cuda.get_device_name()
                _chosen_cuda = _reject_cuda(f"{chosen.reason}, but on {name} it is wrong: {found}")
        _cuda_tried = True
    if cuda_backend().name == "none":
        raise BackendUnavailable(cuda_backend().reason)


def trial_calls() -> int:
    """Native calls that ``try_cuda`` made, which are nobody's."""
    return _trial_calls


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
            library, reason = attempt(cuda=False)
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


def _choose_cuda() -> Backend:
    definitions = torch.library.Library("libortho", "FRAGMENT")
    definitions.define(SCHEMAS[0].replace("dual_linear(", "dual_linear_reference("))
    definitions.impl("dual_linear_reference", reference.dual_linear, "CUDA")
    _definitions.append(definitions)
    wanted = os.environ.get("LIBORTHO_BACKEND", "")
    if wanted == "reference":
        return _use_cuda_reference("LIBORTHO_BACKEND=reference")
    if torch.version.cuda is None or not torch.cuda.is_available():
        return _use_cuda_reference("torch finds no CUDA device")
    failures = []
    for attempt in (_load_packaged, _load_compiled):
        try:
            library, reason = attempt(cuda=True)
        except (build.BuildError, OSError) as error:
            failures.append(str(error))
        else:
            _implement("CUDA", forward=False)
            return Backend("native", "cuda", reason, library)
    cause = "; ".join(failures)
    if wanted == "native":
        return _refuse_cuda(f"LIBORTHO_BACKEND=native, but no CUDA library loads: {cause}")
    _log.warning("libortho runs CUDA tensors on the slow plain-torch reference: %s", cause)
    return _use_cuda_reference(f"no CUDA library loads: {cause}")


def _load_packaged(*, cuda: bool) -> tuple[Path, str]:
    library = _PACKAGED_CUDA if cuda else _PACKAGED
    if not library.exists():
        raise build.BuildError("no packaged library")
    if not build.matches_sources(library, cuda=cuda):
        raise build.BuildError(f"{library} was built from other sources")
    torch.ops.load_library(str(library))
    return library, "packaged library"


def _load_compiled(*, cuda: bool) -> tuple[Path, str]:
    key = f"{build.source_key(cuda=cuda)} torch {torch.__version__}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "libortho"
    library = cache / f"{'cuda' if cuda else 'native'}-{digest[:24]}.so"
    reason = "compiled on this machine"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):
            if not library.exists():
                _log.info("compiling kernels into %s (a minute at most)", library)
                build.build(library, Path(torch.__file__).parent, cuda=cuda)
    torch.ops.load_library(str(library))
    return library, reason


def _use_native(library: Path, reason: str) -> Backend:
    try:
        isa = _ISAS[torch.ops.libortho.isa()]
    except RuntimeError as error:  # LIBORTHO_ISA asks for what is not there
        raise BackendUnavailable(str(error).splitlines()[0]) from error
    return Backend("native", isa, reason, library)


def _use_reference(reason: str) -> Backend:
    definitions = torch.library.Library("libortho", "DEF")
    for schema in SCHEMAS:
        definitions.define(schema)
    _definitions.append(definitions)  # the ops live as long as this object
    _implement("CPU")
    return Backend("reference", "torch", reason, None)


def _use_cuda_reference(reason: str) -> Backend:
    _implement("CUDA")
    return Backend("reference", "torch", reason, None)


def _refusal(reason: str) -> Callable[..., None]:
    def refuse(*_arguments: object) -> None:
        raise BackendUnavailable(reason)

    return refuse


def _refuse_cuda(reason: str) -> Backend:
    refusals = torch.library.Library("libortho", "IMPL")
    for name in ("dual_linear", "dual_linear_backward", "add_streams"):
        refusals.impl(name, _refusal(reason), "CUDA")
    _definitions.append(refusals)
    return Backend("none", "none", reason, None)


def _reject_cuda(reason: str) -> Backend:
    """Puts the reference, or with ``LIBORTHO_BACKEND=native`` a refusal, over a loaded kernel."""
    override = torch.library.Library("libortho", "IMPL")
    _definitions.append(override)
    if os.environ.get("LIBORTHO_BACKEND") == "native":
        override.impl("dual_linear", _refusal(reason), "CUDA")
        return Backend("none", "none", reason, None)
    override.impl("dual_linear", reference.dual_linear, "CUDA")
    _log.warning("libortho runs CUDA tensors on the slow plain-torch reference: %s", reason)
    return Backend("reference", "torch", reason, None)


def _implement(device: str, *, forward: bool = True) -> None:
    implementations = torch.library.Library("libortho", "IMPL")
    if forward:
        implementations.impl("dual_linear", reference.dual_linear, device)
    implementations.impl("dual_linear_backward", reference.dual_linear_backward, device)
    implementations.impl("add_streams", reference.add_streams, device)
    _definitions.append(implementations)


def _finish() -> None:
    register_fakes()
    register_derivatives()
