"""The same two streams on the V2 runner, on two ranks, and in compiled graphs; closed, they are the
base alone there, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import HERE, PLUGIN, ROOT, Engine

ALPHAS = [None, 1, 0.5, 0.25, 0, "private=1", "repair=1", "private=0.5,repair=1"]

WAYS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "v2": (
        {
            "VLLM_USE_V2_MODEL_RUNNER": "1",
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": f"{PLUGIN}:{ROOT / 'src'}:{HERE / 'interpreted'}",
        },
        {},
    ),
    "tp2": (
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        {"tensor_parallel_size": 2},
    ),
    "compiled": ({}, {"enforce_eager": False}),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_a_mixed_batch_says_what_transformers_says(
    way: str, engines: Callable[..., Engine], two: Path, reference, prompts, figures
) -> None:
    variables, options = WAYS[way]
    engine = engines(**variables).start(two, **options)
    assert engine.call("runner") == ("V2" if way == "v2" else "V1")
    measure = reference(two)
    results = engine.generate(prompts, ALPHAS, 12)
    agreement = measure.compare(prompts, ALPHAS, results)
    figures[f"mixed_{way}"] = agreement.figures()
    assert agreement.holds, agreement
    closed = answers_closed(engine, way, prompts)
    changed = [r["tokens"] != c["tokens"] for r, c in zip(results, closed, strict=True)]
    assert changed == [alpha not in (None, 0) for alpha in ALPHAS]

    # One after another: a prefix is found again under its own alpha only.
    text = (prompts[3] * 2)[:70]
    sequence = [1, 1, 0, "private=1,repair=1", "private=1", None]
    engine.call("forget")
    cached = [engine.generate([text], [alpha], 2)[0]["cached"] for alpha in sequence]
    assert cached == [0, 64, 0, 64, 0, 64]
    engine.stop()

    alone = engines(**variables, LIBORTHO_STRICT="1").start(two, **options)
    assert answers_closed(alone, way, prompts) == closed
    figures[f"closed_{way}"] = "bit-identical"
    alone.stop()


def answers_closed(engine: Engine, way: str, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """Tokens and log-probabilities at alpha 0, from batches that no clock has a say in."""
    engine.call("forget")
    if way == "tp2":  # its core is another process, whose batches are made of what has arrived
        return [engine.generate([prompt], [0], 12)[0] for prompt in prompts]
    answers: list[dict[str, Any]] = engine.generate(prompts, [0] * len(prompts), 12)
    return answers
