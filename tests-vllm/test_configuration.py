"""What is decided before an engine runs: options that are refused, keys of compiled graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoints import add, beside, sparse
from engines import OPTIONS, Engine, EngineFailed

from libortho.streams.ortho import MANIFEST


@pytest.fixture(scope="module")
def process(engines: Callable[..., Engine]) -> Iterator[Engine]:
    return engines()


def configure(process: Engine, model: Path, **options: object) -> str:
    answer: str = process.call("config_hash", model=str(model), **{**OPTIONS, **options})
    return answer


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"enable_lora": True}, "LoRA"),
        (
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            "KV connector",
        ),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "speculative decoding",
        ),
    ],
)
def test_options_under_which_streams_are_not_safe(process, base, two, options, said) -> None:
    with pytest.raises(EngineFailed, match=said):
        configure(process, two, **options)
    configure(process, base, **options)


def test_a_graph_compiled_for_the_base_is_not_taken_for_one_with_streams(
    process, two: Path, tmp_path: Path
) -> None:
    directory = beside(two, tmp_path / "model")
    full = configure(process, directory)
    assert configure(process, directory) == full
    shutil.rmtree(directory / "ortho" / "repair")
    one = configure(process, directory)
    shutil.rmtree(directory / "ortho")
    assert len({full, one, configure(process, directory)}) == 3


def test_a_stream_of_another_base_stops_the_engine(process, two: Path, tmp_path: Path) -> None:
    directory = beside(two, tmp_path / "model")
    file = directory / "ortho" / "private" / MANIFEST
    manifest = {**json.loads(file.read_text()), "base_id": "0" * 64}
    file.unlink()
    file.write_text(json.dumps(manifest))
    with pytest.raises(EngineFailed, match="belongs to base 000000000000"):
        configure(process, directory)


def test_a_layer_that_was_not_read_stops_the_engine(engines, two: Path, tmp_path: Path) -> None:
    engine = engines(LIBORTHO_STREAMS="private")
    with pytest.raises(EngineFailed, match=r"answered without them: private: model\.layers\.0"):
        engine.call("start_without", model=str(two), layer="layers.0.mlp.down_proj", **OPTIONS)
    engine.stop()


def test_a_stream_swapped_before_it_is_read_stops_the_engine(
    engines, base: Path, two: Path, tmp_path: Path
) -> None:
    directory, other = beside(two, tmp_path / "model"), beside(base, tmp_path / "other")
    add(other, "private", sparse(0.01))
    engine = engines()
    swapped = {"stream": directory / "ortho" / "private", "other": other / "ortho" / "private"}
    with pytest.raises(EngineFailed, match="where the engine was configured for"):
        engine.call(
            "start_swapped",
            model=str(directory),
            **OPTIONS,
            **{k: str(v) for k, v in swapped.items()},
        )
    engine.stop()


def test_alpha_is_refused_where_the_plugin_is_off(engines, two: Path) -> None:
    engine = engines(VLLM_PLUGINS="none")
    options = {**OPTIONS, "model": str(two)}
    assert "plugin is off" in engine.call("front_says", options=options, alpha=1)
    assert engine.call("front_says", options=options, alpha=None) == ""
    engine.stop()
