"""The entry point that vLLM calls in every one of its processes."""

from __future__ import annotations

import logging

RELEASE = "0.32"
"""The release of vLLM whose inner functions are those that the hooks wrap, and are tested with."""

_log = logging.getLogger("vllm.libortho")
_loaded = False
_off = "VLLM_PLUGINS is set in this engine and does not name libortho"


def reason_off() -> str | None:
    """Why the plugin is not at work in this process; None where it is."""
    return None if _loaded else _off


def register() -> None:
    """Extend vLLM; calls after the first do nothing.

    Beside another release of vLLM it does nothing but say so: models are served as if libortho were
    not there, and requests with α are refused.
    """
    global _loaded, _off
    if _loaded:
        return
    import vllm

    if ".".join(vllm.__version__.split(".")[:2]) != RELEASE:
        _off = f"it extends vLLM {RELEASE}, and {vllm.__version__} is installed"
        _log.error("libortho serves no stream here: %s", _off)
        return
    from libortho.serve.config import register_config
    from libortho.serve.front import hook_core, hook_front
    from libortho.serve.kernel import register_kernel
    from libortho.serve.refusals import hook_engine
    from libortho.serve.runners import hook_v1, hook_v2

    register_config()
    register_kernel()
    hook_engine()
    hook_front()
    hook_core()
    hook_v1()
    hook_v2()
    _loaded = True
