"""What a request asks for: α per stream, and the key under which its cached state may be shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from libortho import gate
from libortho.errors import AlphaError
from libortho.serve.attached import Attached

FIELD = "ortho_alpha"
"""The name in ``SamplingParams.extra_args`` and in the HTTP field ``vllm_xargs``."""

Alphas = tuple[float, ...]
"""α of one request, a value per attached stream."""


def request_alphas(arguments: Mapping[str, Any] | None, attached: Attached) -> Alphas:
    """α of a request, from its ``extra_args``; all 0 where it says nothing.

    Raises:
        AlphaError: the value is out of range, of a wrong type, ambiguous, names a stream that is
            not attached, or opens one without a stream that it requires.
    """
    value = (arguments or {}).get(FIELD)
    if value is None:
        return (0.0,) * len(attached.streams)
    if isinstance(value, str):
        setting = gate.parse(value)
    elif isinstance(value, Sequence):
        raise AlphaError(f"{FIELD} {value!r}: a request has one value, a number or name=number")
    else:
        setting = gate.canonical(value)  # type: ignore[assignment]
    if not attached.streams:
        values = setting.values() if isinstance(setting, Mapping) else (setting,)
        if any(values):
            raise AlphaError(f"{FIELD} {value!r}: no stream is attached here: {attached.reason}")
        return ()
    return tuple(gate.resolve(setting, attached.infos, 1)[:, 0].tolist())


def cache_key(alphas: Alphas, attached: Attached) -> str:
    """Ids and α of all open streams: what cached keys and values are a function of."""
    opened = [
        f"{stream.info.id}={round(alpha * gate.STEPS)}"
        for stream, alpha in zip(attached.streams, alphas, strict=True)
        if alpha
    ]
    return ",".join(opened)


def salted(salt: str | None, alphas: Alphas, attached: Attached) -> str:
    """A request's prefix-cache salt: the open streams first, so that no client's salt can pose as
    them, then the client's own."""
    return f"libortho:{cache_key(alphas, attached)}|{salt or ''}"
