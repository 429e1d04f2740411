"""Real vLLM on a CPU. ``make test-vllm`` makes the environment and runs this; nothing is skipped
for want of vLLM. Each run leaves a dated record under records/vllm/.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_base, with_many, with_two
from engines import Engine
from reference import Reference

SEED = 0
LENGTHS = (5, 17, 40, 90, 7, 100, 33, 64)
"""Prompt lengths: below and above what one step reads (64 tokens)."""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("checkpoints") / "base")


@pytest.fixture(scope="session")
def two(base: Path) -> Path:
    """The base with ``repair`` and ``private``."""
    return with_two(base, base.parent / "two")


@pytest.fixture(scope="session")
def many(base: Path) -> Path:
    """The base with ``repair``, ``private``, ``tenant-7`` and ``bound``."""
    return with_many(base, base.parent / "many")


@pytest.fixture(scope="session")
def reference() -> Callable[[Path], Reference]:
    kept: dict[Path, Reference] = {}

    def load(directory: Path) -> Reference:
        return kept.setdefault(directory, Reference(directory))

    return load


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    draw = random.Random(SEED)
    return [[draw.randrange(10, 8000) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """Starts engines that live as long as the tests of one file."""
    folder = tmp_path_factory.mktemp("engines")
    running: list[Engine] = []

    def launch(**options: Any) -> Engine:
        engine = Engine(folder / f"engine-{len(running)}.log", **options)
        running.append(engine)
        return engine

    yield launch
    for engine in running:
        engine.stop()
