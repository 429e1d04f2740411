"""The longer matrix: architectures × dtypes × what people do with them, and the real lm-eval.

``make test-matrix`` installs lm-eval and runs this. Each run leaves a dated record under
records/matrix/.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from libortho.quantize import quantize

ROOT = Path(__file__).resolve().parent.parent
SEED = 0

sys.path.insert(0, str(ROOT / "tests" / "architectures"))
import zoo  # noqa: E402


def _tiny() -> Any:
    """The fixtures of the ordinary tests, under another name than this file's."""
    spec = importlib.util.spec_from_file_location("tiny_fixtures", ROOT / "tests" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_fixtures = _tiny()
random_layer = _fixtures.random_layer
tiny_checkpoint = _fixtures.tiny_checkpoint
tiny_base = _fixtures.tiny_base
make_layers = _fixtures.make_layers
closed_gate = _fixtures.closed_gate


@pytest.fixture(scope="session")
def make_layer() -> Any:
    """``make_layer(shape, kind="csr", seed=0)``: one random layer."""
    return random_layer


@pytest.fixture(scope="session", params=list(zoo.CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    """The architecture."""
    return str(request.param)


@pytest.fixture(scope="session")
def public(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its public checkpoint; treat it as read-only."""
    out = tmp_path_factory.mktemp("public") / name
    return zoo.build(name, out, _fixtures.build_tokenizer(), SEED)


@pytest.fixture(scope="session")
def base(public: Path, name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its INT4 base; treat it as read-only."""
    return quantize(public, tmp_path_factory.mktemp("base") / name, method="mse").path


@pytest.fixture(scope="session")
def ids() -> Tensor:
    """Three sequences of 20 tokens."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(1, zoo.VOCABULARY - 3, (3, 20), generator=generator)
