"""The sizing table says what its record says, and counts what the kernels would read."""

from __future__ import annotations

import pytest
import torch
from recipes.serving import DOCUMENT, MODELS, draw, filled, runs_shown, slots

from libortho.layout import tile_csr
from libortho.serve.shards import Shard, take_csr
from libortho.streams.layers import csr_from_dense


def test_the_document_says_what_its_records_say() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert filled(text, runs_shown(text)) == text, "run python -m recipes.serving write"


@pytest.mark.parametrize("split_inputs", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_slots_are_those_of_each_rank_s_tiles(ranks: int, split_inputs: bool) -> None:
    parts, inputs = (64, 32, 32), 48
    rows, columns = draw(128, inputs, 1.0, torch.Generator().manual_seed(1))
    dense = torch.zeros(128, inputs)
    dense[rows, columns] = 1
    layer = csr_from_dense(dense, dense != 0)
    found = slots(rows, columns, parts, inputs, ranks, split_inputs)
    for rank in range(ranks):
        ranges, start = [], 0
        for part in parts:
            own = part // ranks
            ranges.append((start + rank * own, start + (rank + 1) * own))
            start += part
        width = inputs // ranks
        shard = (
            Shard(((0, 128),), (rank * width, (rank + 1) * width))
            if split_inputs
            else Shard(tuple(ranges), (0, inputs))
        )
        taken = take_csr([(0, layer)], shard)
        tiles = tile_csr(taken.indptr, taken.indices, taken.shape)
        assert found[rank] == tiles.columns.shape[0]


def test_the_models_have_the_weights_that_their_names_say() -> None:
    for name, shape in MODELS.items():
        total = shape.weights() + 2 * shape.vocabulary * shape.hidden
        assert total / 1e9 == pytest.approx(float(name[:-1]), rel=0.015)
