"""Random dual-stream layers for the tests of the op."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from random_layer import Case, make_case, stream_of
from torch import Tensor

from libortho import ops
from libortho.layout import OrthoTiles


@pytest.fixture(scope="session")
def case() -> Callable[..., Case]:
    return make_case


@pytest.fixture(scope="session")
def stream() -> Callable[[Tensor, Tensor], tuple[OrthoTiles, Tensor]]:
    return stream_of


@pytest.fixture(scope="session")
def native() -> None:
    """For laws of the native function: this machine must have it."""
    assert ops.backend().name == "native", ops.backend().reason
