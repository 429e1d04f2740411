"""An alpha that a route would not read is found in the body, wherever it stands."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libortho.serve.bodies import PLACES, problem

SPARED = {"prompt": "what is ortho_alpha?", "tools": ["ortho_alpha"]}


def said(path: str, body: object, query: bytes = b"") -> str | None:
    return problem(path, query, body if isinstance(body, bytes) else json.dumps(body).encode())


def at(place: tuple[str, ...], value: object) -> dict[str, object]:
    body: object = {"ortho_alpha": value}
    for name in reversed(place):
        body = {name: body}
    assert isinstance(body, dict)
    return body | SPARED


@pytest.mark.parametrize("path", PLACES)
def test_each_route_reads_its_own_place_only(path: str) -> None:
    place = PLACES[path]
    for value in (0, 1, 0.5, "private=1", None):
        assert said(path, at(place, value)) is None
    for wrong in ((), ("extra_body",), ("vllm_xargs", "vllm_xargs"), ("sampling_params",)):
        assert "write {" in str(said(path, at(wrong, 1)))
    assert "twice" in str(said(path, at(place, 1) | {"ortho_alpha": 1}))
    assert "found true" in str(said(path, at(place, True)))


@pytest.mark.parametrize("path", ["/v1/systemone", "/v1/messages/count_tokens", "/", "/v2/new"])
def test_any_other_route_reads_none(path: str) -> None:
    assert said(path, SPARED) is None
    for place in ((), *PLACES.values()):
        assert "gives its requests no alpha" in str(said(path, at(place, 0)))


@pytest.mark.parametrize(
    "body",
    [
        b'{"ortho\\u005falpha": 1}',
        '{"ortho_alpha": 1}'.encode("utf-16"),
        b'{"vllm_xargs": {"ortho_alpha": 1}, "vllm_xargs": {}}',
        b'{"vllm_xargs": {"ortho_alpha": 1, "ortho_alpha": 0}}',
        b'[{"ortho_alpha": 1}]',
        b'--part\r\nContent-Disposition: form-data; name="ortho_alpha"\r\n\r\n1\r\n--part--',
    ],
)
def test_it_cannot_hide(body: bytes) -> None:
    assert said("/v1/completions", body) is not None


def test_nor_in_the_query() -> None:
    assert "query" in str(said("/v1/completions", {}, b"ortho_alpha=1"))


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\0", b"[" * 100_000 + b"\\u0020"])
def test_what_is_no_json_is_left_to_the_route(body: bytes) -> None:
    assert said("/v1/completions", body) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from(sorted(PLACES)))
def test_bodies_without_it_pass(body: dict[str, object], path: str) -> None:
    assert said(path, body) is None
    assert said(path, body | {"other": {"ortho_alpha": body}}) is not None
