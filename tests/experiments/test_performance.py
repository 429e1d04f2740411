"""``experiment performance`` on a tiny model: what is counted, and what makes a run VOID."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from libortho import gate, ops, records, report
from libortho.experiments import performance as room
from libortho.experiments.decode import STREAM, Decoded, decode, random_models
from libortho.model import linears, memory

TINY = LlamaConfig(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=256,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def record() -> records.Record:
    return room.performance(
        config=TINY, batches=(1, 4), steps=4, kernel_shape=(128, 256), kernel_rounds=4
    )


@pytest.mark.skipif(ops.backend().name != "native", reason="the counter is in the native library")
def test_every_linear_is_counted_at_every_step(record: records.Record) -> None:
    states = {1: 3, 4: 4}  # int4, alpha0, alpha1; mixed where there is more than one row
    assert record.figures["expected_op_calls"] == sum(states.values()) * 4 * 8
    assert record.figures["native_op_calls"] == record.figures["expected_op_calls"]
    assert record.verdict == "PASS"
    assert record.config["fused"] is True
    assert record.config["converted_linears"] == 8  # q/k/v, o, gate/up, down of two layers


def test_every_state_has_its_times_and_bytes(record: records.Record) -> None:
    assert list(record.methods) == ["fp", "int4", "alpha0", "alpha1", "mixed"]
    for name, method in record.methods.items():
        values = method.figures
        batches = (4,) if name == "mixed" else (1, 4)
        assert all(values[f"ms_per_token_batch{batch}"] > 0 for batch in batches)
    disk = {name: one.figures["bytes_disk"] for name, one in record.methods.items()}
    assert disk["int4"] < disk["alpha0"] == disk["alpha1"] < disk["fp"]


def test_a_lost_call_and_a_dense_route_are_void() -> None:
    good = Decoded([1.0], 14, 14, 0)
    lost, dense = Decoded([1.0], 13, 14, 0), Decoded([1.0], 14, 14, 2)
    for bad in (lost, dense):
        found = {1: {"fp": Decoded([1.0]), "int4": good, "alpha0": bad}}
        broken = [check for check in room._checks(found, "native") if not check.held]
        assert [check.decides for check in broken] == ["VOID"]


def test_the_reference_backend_is_void() -> None:
    found = {1: {"fp": Decoded([1.0]), "int4": Decoded([1.0], 0, 0, 0)}}
    checks = room._checks(found, "reference")
    assert not checks[0].held
    assert checks[0].decides == "VOID"


def test_the_models_are_one_model() -> None:
    """The converted ones share the base; the closed gate is the base, the open one is not."""
    models = random_models(TINY, 0.05, 0)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        base = models.base(input_ids=tokens).logits
        with gate.alpha(0.0):
            closed = models.streamed(input_ids=tokens).logits
        with gate.alpha(1.0):
            opened = models.streamed(input_ids=tokens).logits
        assert models.floating(input_ids=tokens).logits.isfinite().all()
    assert torch.equal(base, closed)
    assert not torch.equal(base, opened)
    first = next(iter(linears(models.base).values()))
    assert first.base is next(iter(linears(models.streamed).values())).base
    assert memory(models.streamed)[STREAM] > 0


def test_decoding_times_every_state() -> None:
    found = decode(random_models(TINY, 0.01, 0), 2, 3)
    assert {name: len(one.seconds) for name, one in found.items()} == dict.fromkeys(
        ("fp", "int4", "alpha0", "alpha1", "mixed"), 3
    )


def test_the_report_shows_it(record: records.Record, tmp_path: Path) -> None:
    page = report.render([record], tmp_path / "report.html").read_text("utf-8")
    for words in (
        "Batch 4",
        "unmeasured",
        "libortho bench --device cuda",
        "ideal",
        "no such state",
    ):
        assert words in page
    middle = record.methods["alpha1"].figures["ms_per_token_batch4"]
    assert f"{middle:.1f} ms" in page
