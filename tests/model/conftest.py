"""Models with streams in memory, and the inputs that they are asked about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from libortho.gate import StreamInfo
from libortho.model import attach_layers, load

PRIVATE = StreamInfo("private", "id-private", public=False)


@pytest.fixture
def model(tiny_base: Path) -> Any:
    """A fresh model of ``tiny_base`` without streams."""
    return load(tiny_base)


@pytest.fixture
def attach_random(make_layers) -> Callable[..., None]:
    """``attach_random(model, info=PRIVATE, kind="csr", seed=0)``."""

    def attach(
        model: Any, info: StreamInfo = PRIVATE, kind: str = "csr", seed: int = 0, density=0.02
    ) -> None:
        attach_layers(model, info, make_layers(kind, seed, density))

    return attach


@pytest.fixture(scope="session")
def ids() -> Tensor:
    """Four sequences of 12 tokens."""
    return torch.randint(1, 512, (4, 12), generator=torch.Generator().manual_seed(0))
