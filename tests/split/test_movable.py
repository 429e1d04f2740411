"""Codes that gradients move stay codes, and what was moved can be taken back bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libortho import gate
from libortho.checkpoint import Checkpoint
from libortho.model import linears, load
from libortho.quantizers.grid import levels
from libortho.split.forget import attach_movable
from libortho.split.movable import MaskedCodes, MovableCodes
from libortho.split.moved import restores, taken_back, write_moved
from libortho.streams.base import BaseStream
from libortho.streams.layers import CsrLayer, csr_support

ROW = (1, 16)


def part_of(wishes, codes, bits: int = 4, kind=MovableCodes) -> MovableCodes:
    mask = torch.zeros(1, 256, dtype=torch.bool)
    mask[0, : len(codes)] = True
    support = CsrLayer(*csr_support(mask), torch.zeros(len(codes)).half(), (1, 256))
    scales = torch.full((len(codes),), 0.01).half()
    part = kind(support, torch.tensor(codes, dtype=torch.int8), scales, *levels(bits), seed=0)
    with torch.no_grad():
        part.wish.copy_(torch.tensor(wishes))
    return part


@given(
    pairs=st.lists(st.tuples(st.floats(-20, 20), st.integers(-4, 3)), min_size=1, max_size=20),
    bits=st.sampled_from([3, 4]),
)
@settings(deadline=None)
def test_moves_are_powers_of_two_within_the_levels(pairs, bits: int) -> None:
    wishes, codes = (list(values) for values in zip(*pairs, strict=True))
    moves = part_of(wishes, codes, bits).moves()
    low, high = levels(bits)
    for wish, code, move in zip(wishes, codes, moves.tolist(), strict=True):
        assert abs(move) in (0, 1, 2, 4, 8)
        assert low <= code + move <= high
        assert move * wish >= 0
        if abs(wish) < 0.5:
            assert move == 0
        elif low <= code + round(wish) <= high and abs(round(wish)) in (1, 2, 4, 8):
            assert move == round(wish)


def test_the_gradient_passes_the_rounding() -> None:
    part = part_of([0.0, 0.2, -1.2], [0, 3, -4])
    weights = torch.tensor([1.0, -2.0, 0.5])
    values = part.tile_values()
    assert values[values != 0].tolist() == pytest.approx([-0.01], rel=1e-3)
    (part.tile_values().flatten()[part.order.flatten() >= 0] * weights).sum().backward()
    torch.testing.assert_close(part.wish.grad, weights * part.steps)


@pytest.mark.parametrize("kind", [MovableCodes, MaskedCodes])
def test_nothing_moves_at_first_and_codes_do_not_move_together(kind) -> None:
    mask = torch.ones(4, 256, dtype=torch.bool)
    support = CsrLayer(*csr_support(mask), torch.zeros(1024).half(), (4, 256))
    codes, scales = torch.full((1024,), 3, dtype=torch.int8), torch.full((1024,), 0.01).half()
    part = kind(support, codes, scales, -8, 7, seed=1)
    assert not bool(part.moves().any())
    with torch.no_grad():
        part.wish.add_(0.1)
    assert 0.05 < float((part.moves() != 0).float().mean()) < 0.25


def test_wishes_beyond_the_levels_come_back() -> None:
    part = part_of([30.0, -30.0, 2.0], [5, -8, 0])
    part.confine()
    assert part.wish.tolist() == [2.0, 0.0, 2.0]


def test_a_mask_removes_or_leaves() -> None:
    part = part_of([0.4, 0.6, 3.0], [5, -8, 2], kind=MaskedCodes)
    assert part.moves().tolist() == [0.0, 8.0, -2.0]
    part.confine()
    assert part.wish.max() == 1.0


def test_a_forward_computes_with_what_will_be_written(
    tmp_path: Path, tiny_base: Path, tiny_checkpoint: Path
) -> None:
    base = BaseStream.open(tiny_base)
    model = load(tiny_base)
    generator = torch.Generator().manual_seed(0)
    supports = {}
    for name, shape in base.layers.items():
        mask = torch.rand(shape, generator=generator) < 0.1
        supports[name] = CsrLayer(*csr_support(mask), torch.zeros(int(mask.sum())).half(), shape)
    parts = attach_movable(model, base, supports, MovableCodes)
    moves = {}
    for name, part in parts.items():
        with torch.no_grad():
            part.wish.copy_(3 * torch.randn(part.wish.shape, generator=generator))
        dense = torch.zeros(base.layers[name], dtype=torch.int8)
        support = supports[name]
        dense[support.rows(), support.indices.long()] = part.moves().to(torch.int8)
        moves[name] = dense
    ids = torch.randint(1, 512, (2, 12), generator=generator)
    with torch.no_grad(), gate.alpha(1):
        trained = model(input_ids=ids).logits
    after = write_moved(tmp_path / "out", Checkpoint(tiny_checkpoint), base, moves)
    assert after.verify() == []
    with torch.no_grad():
        written = load(after.path)(input_ids=ids).logits
    torch.testing.assert_close(trained, written, rtol=1e-4, atol=1e-4)
    assert len(linears(model)) == len(moves)
    for name, moved in moves.items():
        assert torch.equal(after.scales(name), base.scales(name))
        assert torch.equal(after.codes(name), base.codes(name) + moved)
        layer = taken_back(base, name, moved)
        assert layer.nnz == int((moved != 0).sum())
        assert restores(base, after, name, layer)
