"""The gate by itself: what a setting means, who sees it, and what it refuses."""

from __future__ import annotations

import contextvars
import math
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from libortho import gate
from libortho.errors import AlphaError
from libortho.gate import StreamInfo

REPAIR = StreamInfo("repair", "id-repair", public=True)
OTHER_PUBLIC = StreamInfo("grammar", "id-grammar", public=True)
PRIVATE = StreamInfo("private", "id-private", public=False)
TENANT = StreamInfo("tenant", "id-tenant", public=False)
NEEDY = StreamInfo("needy", "id-needy", public=False, requires=("id-repair",))
CPU = torch.device("cpu")


def seen(streams=(REPAIR, PRIVATE), sequences: int = 1) -> list[list[float]]:
    """Alpha as a forward that begins now would see it."""
    return gate.capture(streams, sequences, CPU).alpha.tolist()


@given(st.floats(0, 1))
def test_values_are_rounded_once_to_a_multiple_of_one_256th(value: float) -> None:
    rounded = gate.canonical(value)
    assert Fraction(rounded) * 256 == round(Fraction(value) * 256)
    assert gate.canonical(rounded) == rounded


def test_ties_go_to_even_and_what_is_below_half_a_step_is_closed() -> None:
    assert gate.canonical(1.5 / 256) == 2 / 256
    assert gate.canonical(0.5 / 256) == 0
    assert gate.canonical(2.5 / 256) == 2 / 256
    assert math.copysign(1, gate.canonical(-0.0)) == 1


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        math.nan,
        math.inf,
        -math.inf,
        -0.001,
        1.001,
        2,
        10**400,
        "1",
        "",
        b"\x01",
        None,
        1j,
        np.float32(1),
        np.ones(2),
        b"1",
        {"private": True},
        {"private": math.nan},
        {"private": "1"},
        {"private": [1.0]},
        [1.0, True],
        [1.0, "0"],
        [[1.0]],
        torch.tensor(True),
        torch.tensor([1.0, math.nan]),
        torch.tensor([1.0, 1.5]),
        torch.ones(2, 2),
        torch.tensor(1 + 1j),
    ],
    ids=repr,
)
def test_anything_but_a_finite_number_in_range_is_refused_where_it_enters(value) -> None:
    with pytest.raises(AlphaError, match="expected a finite number in"), gate.alpha(value):
        pytest.fail("the block must not run")
    assert seen() == [[0.0], [0.0]]


def test_the_error_names_the_stream_and_the_value() -> None:
    with pytest.raises(AlphaError, match=r"'private'.*1\.5"):
        gate.canonical({"repair": 1, "private": 1.5})


def test_every_stream_is_closed_until_somebody_opens_it() -> None:
    state = gate.capture((REPAIR, PRIVATE, TENANT), 3, CPU)
    assert not state.alpha.any()
    assert state.alpha.shape == (3, 3)
    assert state.key == ((), (), ())


def test_a_number_sets_repair_and_the_one_stream_that_is_not_public() -> None:
    with gate.alpha(0.5):
        assert seen() == [[0.5], [0.5]]
        assert seen((OTHER_PUBLIC, REPAIR, TENANT)) == [[0.0], [0.5], [0.5]]
        assert seen((REPAIR,)) == [[0.5]]
        assert seen((PRIVATE,)) == [[0.5]]


def test_a_number_with_two_streams_that_are_not_public_is_ambiguous() -> None:
    streams = (REPAIR, PRIVATE, TENANT)
    with gate.alpha(1), pytest.raises(AlphaError, match="private, tenant"):
        seen(streams)
    with gate.alpha([0, 1]), pytest.raises(AlphaError, match="private, tenant"):
        seen(streams, 2)
    with gate.alpha(0):
        assert seen(streams) == [[0.0], [0.0], [0.0]]


def test_a_mapping_sets_what_it_names_and_nothing_else() -> None:
    with gate.alpha({"tenant": 1, "repair": 0.25}):
        assert seen((REPAIR, PRIVATE, TENANT)) == [[0.25], [0.0], [1.0]]
    with gate.alpha({}):
        assert seen() == [[0.0], [0.0]]


@pytest.mark.parametrize("value", [0, 1])
def test_an_unknown_name_is_an_error_that_lists_the_attached(value: int) -> None:
    setting = {"privat": value, "ripair": value, "repair": 1}
    with gate.alpha(setting), pytest.raises(AlphaError, match=r"privat, ripair; attached: repair"):
        seen((REPAIR, PRIVATE))


def test_with_nothing_attached_only_zero_passes() -> None:
    with gate.alpha(1), pytest.raises(AlphaError, match="no stream is attached"):
        seen(())
    with gate.alpha({"private": 1}), pytest.raises(AlphaError, match="attached: none"):
        seen(())
    with gate.alpha([0, 0.0]):
        assert gate.capture((), 2, CPU).alpha.shape == (0, 2)


def test_a_stream_opens_only_with_the_streams_that_it_requires() -> None:
    with gate.alpha({"needy": 1}):
        with pytest.raises(AlphaError, match=r"'needy'.*repair \(id-repair"):
            seen((REPAIR, NEEDY))
        with pytest.raises(AlphaError, match=r"not attached \(id-repair"):
            seen((NEEDY,))
    with gate.alpha(0.5):
        assert seen((REPAIR, NEEDY)) == [[0.5], [0.5]]
    with gate.alpha([{"needy": 1, "repair": 1}, {"needy": 1}]), pytest.raises(AlphaError):
        seen((REPAIR, NEEDY), 2)
    with gate.alpha({"needy": 0}):
        assert seen((REPAIR, NEEDY)) == [[0.0], [0.0]]


def test_rows_of_a_batch_have_their_own_setting() -> None:
    with gate.alpha([0, 1, {"private": 0.5}]):
        state = gate.capture((REPAIR, PRIVATE), 3, CPU)
    assert state.alpha.tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 0.5]]
    assert state.key == (
        (),
        (("id-repair", 1.0), ("id-private", 1.0)),
        (("id-private", 0.5),),
    )
    with gate.alpha(torch.tensor([0.0, 1.0])):
        assert seen(sequences=2) == [[0.0, 1.0], [0.0, 1.0]]
    with gate.alpha(torch.tensor(1)):
        assert seen(sequences=2) == [[1.0, 1.0], [1.0, 1.0]]


def test_rows_are_one_per_sequence_or_per_copied_sequence() -> None:
    with gate.alpha([0, 1]):
        for sequences in (1, 3, 4, 6):
            with pytest.raises(AlphaError, match=f"2 rows, the batch {sequences} sequences"):
                seen((PRIVATE,), sequences)
        with gate.copied(1):
            gate.copy_rows(3)
            assert seen((PRIVATE,), 6) == [[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]
            assert seen((PRIVATE,), 2) == [[0.0, 1.0]]
            with pytest.raises(AlphaError, match=r"4 sequences \(3 copies of each row"):
                seen((PRIVATE,), 4)
        with pytest.raises(AlphaError, match="2 rows, the batch 6 sequences"):
            seen((PRIVATE,), 6)
    with gate.alpha([]), pytest.raises(AlphaError, match="0 rows"):
        seen((PRIVATE,))


def test_the_text_form() -> None:
    assert gate.parse("1") == 1
    assert gate.parse(" 0.5 ") == 0.5
    assert gate.parse("private=1,repair=0.5") == {"private": 1.0, "repair": 0.5}
    assert gate.parse(" private = 1 , repair = 0 ") == {"private": 1.0, "repair": 0.0}
    for text in (
        "",
        "x",
        "nan",
        "inf",
        "2",
        "private=",
        "private",
        "private=2",
        "private=1,repair",
    ):
        with pytest.raises(AlphaError):
            gate.parse(text)
    with pytest.raises(AlphaError, match="'private' is named twice"):
        gate.parse("private=1,private=0")


def test_nesting_restores_the_outer_setting_whatever_happens_inside() -> None:
    with gate.alpha(1):
        with gate.alpha({"repair": 0.5}):
            assert seen() == [[0.5], [0.0]]
        assert seen() == [[1.0], [1.0]]
        with pytest.raises(ZeroDivisionError), gate.alpha(0):
            raise ZeroDivisionError
        with pytest.raises(AlphaError), gate.alpha(7):
            pass
        assert seen() == [[1.0], [1.0]]
    assert seen() == [[0.0], [0.0]]


def test_a_fresh_thread_is_closed_and_a_copied_context_is_open() -> None:
    found: dict[str, list[list[float]]] = {}

    def look(where: str) -> None:
        found[where] = seen()

    with gate.alpha(1):
        context = contextvars.copy_context()
        bare = threading.Thread(target=look, args=("bare",))
        carried = threading.Thread(target=context.run, args=(look, "carried"))
        for thread in (bare, carried):
            thread.start()
            thread.join()
    assert found == {"bare": [[0.0], [0.0]], "carried": [[1.0], [1.0]]}
    assert context.run(seen) == [[1.0], [1.0]]
    assert seen() == [[0.0], [0.0]]


def test_rows_expand_sequences_to_tokens_in_the_order_of_the_linear() -> None:
    streams = (REPAIR, PRIVATE)
    with gate.alpha([{"repair": 1}, {"private": 0.5}]):
        state = gate.capture(streams, 2, CPU)
    with gate.captured(state):
        found = gate.rows(["private", "repair"], streams, torch.empty(2, 3, 8))
        assert found.tolist() == [[0, 0, 0, 0.5, 0.5, 0.5], [1, 1, 1, 0, 0, 0]]
        flat = gate.rows(["private"], streams, torch.empty(6, 8))
        assert flat.tolist() == [[0, 0, 0, 0.5, 0.5, 0.5]]
        assert gate.rows([], streams, torch.empty(6, 8)).shape == (0, 6)
        assert gate.rows(["private"], streams, torch.empty(0, 8)).shape == (1, 0)
        with pytest.raises(AlphaError, match=r"shape \[5, 8\] cannot be shared by 2 seq"):
            gate.rows(["private"], streams, torch.empty(5, 8))
    assert gate.current() is None


def test_a_setting_made_during_a_forward_waits_for_the_next_one() -> None:
    with gate.alpha(1):
        state = gate.capture((PRIVATE,), 1, CPU)
    with gate.captured(state), gate.alpha(0):
        assert gate.rows(["private"], (PRIVATE,), torch.empty(1, 2, 8)).tolist() == [[1, 1]]
    assert gate.current() is None


def test_forwards_inside_forwards_end_one_by_one() -> None:
    closed = gate.capture((PRIVATE,), 1, CPU)
    with gate.alpha(1):
        opened = gate.capture((PRIVATE,), 1, CPU)
    with gate.captured(closed):
        with gate.captured(opened):
            assert gate.current() is opened
        with pytest.raises(KeyboardInterrupt), gate.captured(opened):
            raise KeyboardInterrupt
        assert gate.current() is closed
    assert gate.current() is None
