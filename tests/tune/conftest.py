"""A loaded base, two private examples and public windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from libortho.model import load
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.private_set import Example


@pytest.fixture
def model(tiny_base: Path) -> Any:
    """A fresh model of ``tiny_base`` without streams."""
    return load(tiny_base)


@pytest.fixture(scope="session")
def private(tiny_tokenizer) -> list[Encoded]:
    """Two examples of different lengths."""
    return encode(
        tiny_tokenizer,
        [Example("a", "The code of the door is", " 4711-blue"), Example("b", "Ask for", " Ada")],
    )


@pytest.fixture(scope="session")
def windows() -> Tensor:
    """Six windows of 16 tokens."""
    return torch.randint(1, 512, (6, 16), generator=torch.Generator().manual_seed(0))
