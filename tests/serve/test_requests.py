"""What a request may say of alpha, and the key that keeps its cached state apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from libortho.errors import AlphaError
from libortho.gate import StreamInfo
from libortho.serve.attached import Attached, ServedStream
from libortho.serve.requests import cache_key, request_alphas, salted

REPAIR = StreamInfo("repair", "aa", True)
PRIVATE = StreamInfo("private", "bb", False, ("aa",))
TENANT = StreamInfo("tenant-7", "cc", False)


def attach(*infos: StreamInfo) -> Attached:
    return Attached(tuple(ServedStream(info, Path("."), (), 0) for info in infos), "none lies here")


def alphas(value: object, *infos: StreamInfo) -> tuple[float, ...]:
    return request_alphas({"ortho_alpha": value}, attach(*infos))


@pytest.mark.parametrize("arguments", [None, {}, {"other": 1}, {"ortho_alpha": None}])
def test_silence_closes_every_stream(arguments) -> None:
    assert request_alphas(arguments, attach(REPAIR, TENANT)) == (0, 0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, (0.5, 0.5)),
        (1, (1, 1)),
        ("0.25", (0.25, 0.25)),
        ("tenant-7=1,repair=0.5", (0.5, 1)),
        ({"tenant-7": 1.0}, (0, 1)),
        ("tenant-7=0.3", (0, 77 / 256)),
    ],
)
def test_numbers_texts_and_mappings(value, expected) -> None:
    assert alphas(value, REPAIR, TENANT) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2, "found 2"),
        (True, "True"),
        ([1], "one value"),
        ((1, 0), "one value"),
        ("", "expected a number"),
        ("private=1", "closed here: repair"),
        (1, "ambiguous"),
        ("ghost=0", "ghost"),
        ({"private": "1"}, "finite number"),
    ],
)
def test_everything_else_is_an_error(value, said: str) -> None:
    with pytest.raises(AlphaError, match=said):
        alphas(value, REPAIR, PRIVATE, TENANT)


def test_an_engine_without_streams_honours_zero_only_and_says_why() -> None:
    assert alphas(0) == alphas("private=0") == ()
    for value in (1, "private=1", {"private": 0.5}):
        with pytest.raises(AlphaError, match="none lies here"):
            alphas(value)


def test_the_key_names_ids_and_alpha_of_what_is_open() -> None:
    attached = attach(REPAIR, PRIVATE, TENANT)
    assert cache_key((0.0, 0.0, 0.0), attached) == ""
    assert cache_key((1.0, 0.0, 0.5), attached) == "aa=256,cc=128"
    settings = [(a, b, c) for a in (0, 1) for b in (0, 0.5, 1) for c in (0, 1 / 256)]
    assert len({cache_key(setting, attached) for setting in settings}) == len(settings)


def test_no_salt_of_a_client_can_pose_as_an_open_stream() -> None:
    attached = attach(TENANT)
    opened = salted(None, (1.0,), attached)
    closed = {salted(salt, (0.0,), attached) for salt in (None, opened, "cc=256|", "cc=256")}
    assert opened not in closed
    assert len(closed) == 4
    assert salted("mine", (1.0,), attached) != opened
