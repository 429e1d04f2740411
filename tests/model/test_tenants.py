"""Many private streams on one base: each request reads the one that it names, and no other."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import libortho
from libortho import gate
from libortho.errors import AlphaError, ConfigError
from libortho.gate import StreamInfo
from libortho.linear import LowRankStream
from libortho.model import attach_layers, linears, load, stream_parts

TENANTS = [f"tenant-{number}" for number in range(1, 6)]


@pytest.fixture
def house(model, make_layers) -> Any:
    """Five tenants, every other one a sparse stream."""
    for number, name in enumerate(TENANTS):
        kind = "csr" if number % 2 == 0 else "lowrank"
        attach_layers(model, StreamInfo(name, f"id-{name}", False), make_layers(kind, number))
    return model


def logits(model, ids: Tensor, alpha: Any) -> Tensor:
    with torch.no_grad(), libortho.alpha(alpha):
        return model(input_ids=ids).logits


def alone(tiny_base: Path, make_layers, number: int) -> Any:
    model = load(tiny_base)
    name, kind = TENANTS[number], "csr" if number % 2 == 0 else "lowrank"
    attach_layers(model, StreamInfo(name, f"id-{name}", False), make_layers(kind, number))
    return model


def poison(model, name: str) -> None:
    for part in stream_parts(model, name).values():
        if isinstance(part, LowRankStream):
            part.a.fill_(math.nan)
            part.b.fill_(math.inf)
        else:
            part.values.fill_(math.nan)


@pytest.mark.parametrize("number", range(3))
def test_a_request_reads_what_it_names(house, ids, tiny_base, make_layers, number: int) -> None:
    name = TENANTS[number]
    expected = logits(alone(tiny_base, make_layers, number), ids, {name: 1})
    assert torch.equal(logits(house, ids, {name: 1}), expected)
    assert not torch.equal(expected, logits(house, ids, 0))


def test_a_poisoned_neighbour_is_never_read(house, ids) -> None:
    rows = [{"tenant-1": 1}, 0, {"tenant-2": 0.5}, {"tenant-1": 0.25, "tenant-2": 1}]
    before = [logits(house, ids, row) for row in ({"tenant-1": 1}, {"tenant-2": 1}, 0, rows)]
    for name in TENANTS[2:]:
        poison(house, name)
    after = [logits(house, ids, row) for row in ({"tenant-1": 1}, {"tenant-2": 1}, 0, rows)]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    # The poison is real: whoever names it gets it, and in its own row only.
    named = logits(house, ids, [{"tenant-1": 1}, {"tenant-3": 1}, {"tenant-4": 1}, 0])
    assert torch.equal(named[0], logits(house, ids, [{"tenant-1": 1}, 0, 0, 0])[0])
    assert bool(named[1].isnan().any())
    assert bool(named[2].isnan().any())
    assert bool(named[[0, 3]].isfinite().all())


def test_rows_of_a_batch_belong_to_different_tenants(house, ids) -> None:
    rows = [{"tenant-1": 1}, {"tenant-2": 1}, {"tenant-3": 1}, 0]
    mixed = logits(house, ids, rows)
    for place, row in enumerate(rows):
        # The same row at the same place, whatever its neighbours ask for: the same bits.
        others = [row if place == other else 0 for other in range(len(rows))]
        assert torch.equal(mixed[place], logits(house, ids, others)[place])


def test_a_number_or_a_stranger_is_an_error_that_names_the_tenants(house, ids) -> None:
    with pytest.raises(AlphaError, match=r"ambiguous.*tenant-1, tenant-2.*tenant-5"):
        logits(house, ids, 1)
    with pytest.raises(AlphaError, match=r"not attached: tenant-9; attached: tenant-1"):
        logits(house, ids, {"tenant-9": 1})


def test_tenants_come_and_go_without_touching_the_base(house, ids, make_layers) -> None:
    def base() -> dict[str, Tensor]:
        state = house.state_dict()
        return {name: tensor for name, tensor in state.items() if ".streams." not in name}

    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in base().items()}
    closed, second = logits(house, ids, 0), logits(house, ids, {"tenant-2": 1})
    libortho.detach(house, "tenant-1")
    assert torch.equal(logits(house, ids, {"tenant-2": 1}), second)
    with pytest.raises(AlphaError, match="not attached: tenant-1"):
        logits(house, ids, {"tenant-1": 1})
    assert not any("tenant-1" in name for name in house.state_dict())
    attach_layers(house, StreamInfo("tenant-1", "id-new", False), make_layers("csr", 42))
    assert torch.equal(logits(house, ids, 0), closed)
    after = base()
    assert after.keys() == before.keys()
    for name, (address, tensor) in before.items():
        assert after[name].data_ptr() == address
        assert torch.equal(after[name], tensor)


def test_a_forward_under_way_keeps_the_streams_that_it_began_with(house, ids, make_layers) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def wait(module, args) -> None:
        reached.set()
        assert go_on.wait(30)

    expected = logits(house, ids, {"tenant-1": 1})
    handle = house.model.layers[0].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(logits, house, ids, {"tenant-1": 1})
        assert reached.wait(30)
        attach_layers(house, StreamInfo("late", "id-late", False), make_layers("csr", 42))
        with pytest.raises(ConfigError, match=r"1 forward\(s\) are under way"):
            libortho.detach(house, "tenant-1")
        go_on.set()
        assert torch.equal(answer.result(30), expected)
    handle.remove()
    assert not torch.equal(logits(house, ids, {"tenant-1": 1, "late": 1}), expected)
    libortho.detach(house, "tenant-1")
    with pytest.raises(AlphaError):
        logits(house, ids, {"tenant-1": 1})
    libortho.detach(house, "late")  # a forward that failed is not under way


def test_memory_is_told_per_tenant(house, model) -> None:
    found = libortho.memory(house)
    assert set(found) == {"base", *TENANTS}
    for name in TENANTS:
        parts = stream_parts(house, name).values()
        tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        assert found[name] == sum(tensor.nbytes for tensor in tensors) > 0
    whole = sum(found.values())
    libortho.detach(house, "tenant-3")
    left = libortho.memory(house)
    assert left == {name: size for name, size in found.items() if name != "tenant-3"}
    assert sum(left.values()) == whole - found["tenant-3"]
    # Embeddings are tied: they count once.
    tiles = sum(m.base.tiles.nbytes + m.base.scales.nbytes for m in linears(house).values())
    others = sum(
        tensor.nbytes
        for name, tensor in house.named_parameters()
        if ".streams." not in name and "base" not in name
    )
    rotary = sum(t.nbytes for n, t in house.named_buffers() if "rotary" in n)
    assert tiles + others <= left["base"] <= tiles + others + rotary


def test_a_cache_of_one_tenant_serves_no_other(house, ids) -> None:
    with torch.no_grad(), gate.alpha({"tenant-1": 1}):
        cache = house(input_ids=ids, use_cache=True).past_key_values
    for other in ({"tenant-2": 1}, {"tenant-1": 1, "tenant-2": 1}, 0):
        refused = pytest.raises(AlphaError, match="begin with an empty cache")
        with refused, torch.no_grad(), gate.alpha(other):
            house(input_ids=ids[:, :1], past_key_values=cache)
