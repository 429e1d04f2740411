"""The buffer of alpha that every linear reads."""

from __future__ import annotations

import pytest
import torch

from libortho.serve.rows import AlphaRows


def test_a_step_fills_its_tokens_and_closes_the_rest() -> None:
    rows = AlphaRows(2, 8, torch.device("cpu"))
    address = rows.table.data_ptr()
    rows.fill([(1.0, 0.0), (0.0, 0.5), (0.0, 0.0)], [2, 1, 3])
    assert rows.table.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0.5, 0, 0, 0, 0, 0]]
    rows.fill([(0.0, 1.0)], [1])
    assert rows.table.tolist() == [[0] * 8, [1, 0, 0, 0, 0, 0, 0, 0]]
    assert rows.open
    rows.fill([(0.0, 0.0)], [5])
    assert not rows.open
    assert not rows.table.any()
    assert rows.table.data_ptr() == address


def test_clear_closes_every_row() -> None:
    rows = AlphaRows(1, 4, torch.device("cpu"))
    rows.fill([(1.0,)], [4])
    rows.clear()
    assert not rows.open
    assert not rows.table.any()


def test_a_step_larger_than_the_buffer_is_an_error() -> None:
    rows = AlphaRows(1, 4, torch.device("cpu"))
    with pytest.raises(ValueError, match="5 tokens"):
        rows.fill([(1.0,)], [5])
