"""The base in stock vLLM, without libortho, against engines with closed and poisoned streams."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import beside, poison
from engines import Engine

STOCK = {"dtype": "float16", "num_gpu_blocks_override": 64, "max_num_batched_tokens": 320}
HALF_TOLERANCE = 0.02
"""Of a log-probability in float16, in nats: vLLM has no INT4 kernel for float32 on a CPU."""

ROUNDS = 24
TOKENS = 24


@pytest.fixture(scope="module")
def stock(engines: Callable[..., Engine], two: Path) -> Iterator[Engine]:
    return engines(plugin=False).start(two, **STOCK)


@pytest.fixture(scope="module")
def answers(stock: Engine, prompts) -> list[dict[str, Any]]:
    return stock.generate(prompts, [None] * len(prompts), 16)


@pytest.fixture(scope="module")
def poisoned(two: Path) -> Path:
    directory = beside(two, two.parent / "poisoned")
    poison(directory)
    return directory


def test_stock_vllm_serves_the_base_of_a_directory_with_streams(
    stock, answers, reference, two, prompts, figures
) -> None:
    assert stock.call("modules", package="libortho") == []
    assert stock.call("opened", part="/ortho/") == []
    closed = [0] * len(prompts)
    agreement = reference(two).compare(prompts, closed, answers, HALF_TOLERANCE)
    figures["stock_float16"] = agreement.figures()
    assert agreement.holds, agreement


def test_the_plugin_with_closed_streams_is_stock_vllm_bit_for_bit(
    stock, answers, engines, two, prompts, figures
) -> None:
    engine = engines().start(two, **STOCK)
    assert engine.generate(prompts, [0] * len(prompts), 16) == answers
    opened = engine.generate(prompts, [1] * len(prompts), 16)
    assert all(a["tokens"] != b["tokens"] for a, b in zip(opened, answers, strict=True))
    figures["closed_against_stock"] = "bit-identical"
    figures["throughput"] = throughput(stock, engine, prompts)
    engine.stop()
    assert figures["throughput"]["ratio_median"] >= 0.97, figures["throughput"]


def throughput(stock: Engine, engine: Engine, prompts: list[list[int]]) -> dict[str, Any]:
    """Tokens per second over stock's, in rounds whose order alternates; the first two warm up."""
    closed, opened = [], []
    for turn in range(ROUNDS + 2):
        ways = [("stock", stock, None), ("closed", engine, None), ("open", engine, 1)]
        speeds = {
            name: who.call("timed", prompts=prompts, tokens=TOKENS, alpha=alpha)
            for name, who, alpha in (ways if turn % 2 else ways[::-1])
        }
        closed.append(speeds["closed"] / speeds["stock"])
        opened.append(speeds["open"] / speeds["stock"])
    return {
        **spread(closed[2:]),
        "two_streams_open": spread(opened[2:]),
        "batch": len(prompts),
        "tokens": TOKENS,
    }


def spread(ratios: list[float]) -> dict[str, Any]:
    """The median with its distribution-free 95% interval: order statistics of binomial(n, 1/2)."""
    ordered = sorted(ratios)
    n = len(ordered)
    reach = math.ceil(1.96 * math.sqrt(n) / 2)
    return {
        "pairs": n,
        "ratio_median": statistics.median(ordered),
        "ratio_low": ordered[max(0, n // 2 - reach)],
        "ratio_high": ordered[min(n - 1, n // 2 + reach - 1)],
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def test_poison_in_closed_streams_changes_nothing(
    answers, engines, poisoned, prompts, figures
) -> None:
    engine = engines().start(poisoned, **STOCK)
    assert engine.generate(prompts, [0] * len(prompts), 16) == answers
    engine.call("forget")
    mixed = engine.generate(prompts, [0, 1] * (len(prompts) // 2), 16)
    assert mixed[::2] == answers[::2]  # log-probabilities, too
    assert all(a["tokens"] != b["tokens"] for a, b in zip(mixed[1::2], answers[1::2], strict=True))
    figures["poisoned_closed_against_stock"] = "bit-identical"
    engine.stop()


def test_a_strict_engine_opens_no_file_of_a_stream(
    answers, engines, poisoned, prompts, figures
) -> None:
    engine = engines(LIBORTHO_STRICT="1").start(poisoned, **STOCK)
    assert engine.generate(prompts, [0] * len(prompts), 16) == answers
    assert engine.call("opened", part="/ortho/") == []
    assert engine.call("opened", part="/poisoned/") != []
    with pytest.raises(Exception, match="LIBORTHO_STRICT=1: this engine never loads"):
        engine.generate(prompts[:1], [1], 1)
    figures["strict_against_stock"] = "bit-identical, no file under ortho/ opened"
    engine.stop()
