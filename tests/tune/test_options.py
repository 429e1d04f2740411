"""Options are checked when they enter, all at once."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from libortho.errors import ConfigError
from libortho.tune.options import TuneOptions, tune_options


def test_every_wrong_field_is_named_with_what_was_found() -> None:
    with pytest.raises(ConfigError) as caught:
        tune_options(density=0, steps=-1, budget="some", lr="fast", surprise=1, seed=2)
    message = str(caught.value)
    for part in (
        "training options: ",
        "density: ",
        "found 0",
        "steps: ",
        "found -1",
        "budget: ",
        "found 'some'",
        "lr: ",
        "found 'fast'",
        "surprise: ",
    ):
        assert part in message, part
    assert "seed" not in message


@pytest.mark.parametrize(
    "values",
    [
        {"density": 0},
        {"density": 1.1},
        {"density": math.nan},
        {"budget": "best"},
        {"steps": 0},
        {"steps": 1.5},
        {"settle": -1},
        {"lr": 0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"warmup": -1},
        {"replay_weight": -1},
        {"replay_weight": math.nan},
        {"replay_weight": math.inf},
        {"replay_batch": 0},
        {"replay_window": 1},
        {"replay_pool": 0},
        {"private_batch": 0},
        {"fisher_windows": 0},
    ],
    ids=str,
)
def test_each_limit_is_held(values) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=f"training options: {name}: "):
        tune_options(**values)


def test_defaults_are_allowed_and_fixed() -> None:
    options = tune_options()
    assert options == TuneOptions()
    assert tune_options(**options.model_dump()) == options
    assert 0 < options.density <= 0.02
    with pytest.raises(ValidationError):
        options.lr = 1.0
