"""Where α may stand in an HTTP request, by its route; anywhere else vLLM would drop it unread."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from libortho.serve.requests import FIELD

_XARGS = ("vllm_xargs",)

PLACES: Mapping[str, tuple[str, ...]] = {
    "/v1/completions": _XARGS,
    "/v1/chat/completions": _XARGS,
    "/v1/responses": _XARGS,
    "/v1/messages": _XARGS,
    "/invocations": _XARGS,
    "/v1/completions/render": _XARGS,
    "/v1/chat/completions/render": _XARGS,
    "/v1/responses/render": _XARGS,
    "/v1/messages/render": _XARGS,
    "/inference/v1/generate": ("sampling_params", "extra_args"),
}
"""Routes that hand a request's parameters on to the engine, and where in their body α stands."""


def problem(path: str, query: bytes, body: bytes) -> str | None:
    """Why a request is refused whatever its route would make of it; None where nothing is wrong.

    Args:
        path: of the route.
        query: the query string.
        body: as it came: a JSON boolean is still one here, which vLLM reads as a number.
    """
    name = FIELD.encode()
    if name in query:
        return f"{FIELD} in the query is not read; {_advice(path)}"
    # Escapes, and encodings other than UTF-8, may hide the name.
    if name not in body and b"\\u" not in body and b"\0" not in body:
        return None
    fields = _Fields()
    try:
        parsed = json.loads(body, object_pairs_hook=fields.collect)
    except (ValueError, RecursionError):
        return f"{FIELD} in a body that is no JSON; {_advice(path)}" if name in body else None
    place = PLACES.get(path)
    here = _inside(parsed, place) if place else {}
    found = FIELD in here
    if fields.count > found:
        where = "twice, or " if found else ""
        return f"{FIELD} stands {where}where {path} does not read it; {_advice(path)}"
    if found and isinstance(here[FIELD], bool):
        return f"{FIELD}: expected a number or a text, found {json.dumps(here[FIELD])}"
    return None


class _Fields:
    """Counts the fields called ``FIELD`` of all objects of a text, repeated ones too."""

    def __init__(self) -> None:
        self.count = 0

    def collect(self, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        pairs = list(pairs)
        self.count += sum(name == FIELD for name, _ in pairs)
        return dict(pairs)


def _inside(parsed: Any, place: Iterable[str]) -> Mapping[str, Any]:
    for name in place:
        parsed = parsed.get(name) if isinstance(parsed, dict) else None
    return parsed if isinstance(parsed, dict) else {}


def _advice(path: str) -> str:
    place = PLACES.get(path)
    if place is None:
        return f"this route gives its requests no alpha; these do: {', '.join(PLACES)}"
    text = f'{{"{FIELD}": …}}'
    for name in reversed(place):
        text = f'{{"{name}": {text}}}'
    return f"write {text} in the body"
