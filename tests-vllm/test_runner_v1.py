"""One eager engine on the V1 runner with four streams: alpha per request, and nothing bleeds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import Engine, EngineFailed
from reference import Reference

from libortho.streams.ortho import OrthoStream

ALPHAS = (
    None,
    "private=1,repair=1",
    "private=0.5,repair=0.5",
    "private=0.25,repair=0.25",
    0,
    "tenant-7=1",
    "repair=1,bound=1",
    "private=0.75",
)
ORDERS = 200


@pytest.fixture(scope="module")
def engine(engines: Callable[..., Engine], many: Path) -> Iterator[Engine]:
    engine = engines(VLLM_USE_V2_MODEL_RUNNER="0")
    engine.call("count_preemptions")
    engine.start(many)
    assert engine.call("runner") == "V1"
    return engine


@pytest.fixture(scope="module")
def measure(reference: Callable[[Path], Reference], many: Path) -> Reference:
    return reference(many)


def test_a_mixed_batch_says_what_transformers_says(engine, measure, prompts, figures) -> None:
    results = engine.generate(prompts, list(ALPHAS), 12)
    agreement = measure.compare(prompts, list(ALPHAS), results)
    figures["mixed_v1"] = agreement.figures()
    assert agreement.holds, agreement
    closed = engine.generate(prompts, [0] * len(prompts), 12)
    changed = [r["tokens"] != c["tokens"] for r, c in zip(results, closed, strict=True)]
    assert changed == [alpha not in (None, 0) for alpha in ALPHAS]


def test_the_memory_of_each_tenant_is_told(engine, many: Path, figures) -> None:
    told = engine.call("memory")
    figures["bytes_of_streams"] = told
    stored = {name: OrthoStream.open(many / "ortho" / name).manifest for name in told}
    assert sorted(told) == ["bound", "private", "repair", "tenant-7"]
    for name in ("bound", "private", "repair"):
        entries = sum(layer.nnz for layer in stored[name].layers.values())
        # Four bytes an entry, and the pads of slices of 16 rows.
        assert 4 * entries < told[name] < 4 * 3 * entries


def test_preemption_keeps_alpha(engine, measure, prompts, figures) -> None:
    before = engine.call("preemptions")
    long = [(prompt * 12)[:80] for prompt in prompts]
    results = engine.generate(long, list(ALPHAS), 48)
    count = engine.call("preemptions") - before
    agreement = measure.compare(long, list(ALPHAS), results)
    figures["preempted_v1"] = {"preemptions": count, **agreement.figures()}
    assert count > 0
    assert agreement.holds, agreement


@pytest.mark.parametrize("other", [0, "private=0.5", "private=1,repair=1", "tenant-7=1"])
def test_neighbours_do_not_change_a_closed_row(engine, prompts, figures, other) -> None:
    batch = [prompts[1], prompts[2], prompts[4]]

    def first(alpha: Any) -> Any:
        engine.call("forget")
        return engine.generate(batch, [0, alpha, alpha], 16)[0]

    alone = first(0)
    assert first(other) == alone
    figures.setdefault("closed_row_beside", {})[str(other)] = "bit-identical"


def test_prefixes_are_shared_under_one_alpha_only(engine, prompts, figures) -> None:
    draw = random.Random(1)
    shared = (prompts[3] * 2)[:96]
    texts = [shared + prompts[0], shared + prompts[4], shared[:64] + prompts[0]]
    alphas = [0, "private=1,repair=1", "private=0.5,repair=0.5", "private=1", "tenant-7=1"]
    pairs = [(text, alpha) for text in texts for alpha in alphas]
    cold = [result[0] for result in engine.call("orders", orders=[[p] for p in pairs], tokens=3)]
    orders = [[draw.randrange(len(pairs)) for _ in range(4)] for _ in range(ORDERS)]
    results = engine.call(
        "orders", orders=[[pairs[pick] for pick in order] for order in orders], tokens=3
    )
    across = hits = changed = missed = 0
    for order, outputs in zip(orders, results, strict=True):
        for position, (pick, output) in enumerate(zip(order, outputs, strict=True)):
            text, alpha = pairs[pick]
            earlier = [pairs[other] for other in order[:position]]
            own = max((common(text, t) for t, a in earlier if a == alpha), default=0)
            across += max(0, output["cached"] - own)
            missed += max(0, own - output["cached"])
            hits += output["cached"] > 0
            changed += output["tokens"] != cold[pick]["tokens"]
    figures["prefix_cache"] = {
        "orders": ORDERS,
        "requests": 4 * ORDERS,
        "requests_with_a_hit": hits,
        "tokens_shared_across_alpha": across,
        "tokens_missed_under_one_alpha": missed,
        "outputs_changed": changed,
    }
    assert (across, missed, changed) == (0, 0, 0)
    assert hits > ORDERS / 4


def common(a: list[int], b: list[int]) -> int:
    """Tokens of whole blocks that two prompts share; the last token is always computed."""
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return min(length, len(a) - 1) // 32 * 32


def test_a_forged_salt_finds_nothing(engine, many: Path, prompts) -> None:
    text = (prompts[3] * 2)[:96]
    private = OrthoStream.open(many / "ortho" / "private").id
    engine.call("forget")
    engine.generate([text], ["private=1"], 2)
    for salt in (f"libortho:{private}=256|", f"{private}=256", "libortho:|"):
        result = engine.call("generate", prompts=[text], alphas=[0], tokens=2, salts=[salt])
        assert result[0]["cached"] == 0


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        (7, "found 7"),
        (float("nan"), "finite"),
        (True, "found True"),
        ([1], "one value"),
        ("warm", "expected a number"),
        ("ghost=1", "not attached: ghost"),
        ("private=1,private=0", "named twice"),
        (1, "ambiguous"),
        ("bound=1", "closed here: repair"),
    ],
)
def test_alpha_that_cannot_be_honoured_is_refused(engine, prompts, alpha, said: str) -> None:
    with pytest.raises(EngineFailed, match=said):
        engine.generate([prompts[0]], [alpha], 1)
    assert said.split(":")[0] in engine.call("core_refuses", arguments={"ortho_alpha": alpha})


def test_resumable_requests_are_refused(engine) -> None:
    assert "resumable" in engine.call("resumable")
    assert "resumable" in engine.call("core_refuses", arguments={}, resumable=True)
