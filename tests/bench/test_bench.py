"""The benchmark: checked peers, calls counted, results that can be read back."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
import torch

from libortho import bench, ops
from libortho.bench import kernels, llama_cpp, peers
from libortho.bench.layers import random_layer
from libortho.bench.results import collect, read
from libortho.bench.timing import READ, WARM_UP, entered, paired, ratio
from libortho.cli import ERROR, run
from libortho.errors import FormatError

CPU = torch.device("cpu")
SHAPE = (64, 256)

pytestmark = pytest.mark.skipif(
    ops.backend().name != "native", reason="bench refuses the reference backend"
)


def test_paired_runs_find_the_slower_one() -> None:
    seconds = paired(
        {"slow": lambda _: time.sleep(0.01), "fast": lambda _: time.sleep(0.001)}, 5, CPU
    )
    assert {name: len(times) for name, times in seconds.items()} == {"slow": 5, "fast": 5}
    assert ratio(seconds, "slow", "fast") > 2


def test_no_candidate_finds_the_copy_that_the_one_before_has_read() -> None:
    turns: list[int] = []
    paired({"one": turns.append, "two": turns.append}, 4, CPU)
    assert turns == list(range(2 * (4 + WARM_UP)))


def test_a_gpu_replays_recorded_calls(monkeypatch) -> None:
    """Recorded once, on copies of the weights of their own; a round is the mean of a replay."""
    turns: list[int] = []
    replays: list[str] = []

    class Event:
        def __init__(self, **_) -> None: ...
        def record(self) -> None: ...
        def synchronize(self) -> None: ...
        def elapsed_time(self, _) -> float:
            return 32.0

    class Graph:
        def replay(self) -> None:
            replays.append("graph")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    gpu = torch.device("cuda")
    seconds = paired({"one": turns.append, "two": turns.append}, 4, gpu, recorded=16)
    assert seconds == {"one": [0.002] * 4, "two": [0.002] * 4}
    assert turns == list(range(2 * entered(4, gpu)))
    assert len(replays) == 2 * (4 + WARM_UP)


def test_a_figure_on_a_cpu_is_the_mean_of_calls_in_a_row() -> None:
    turns: list[int] = []

    def call(turn: int) -> None:
        turns.append(turn)
        time.sleep(0.002)

    seconds = paired({"one": call, READ + "other": turns.append}, 4, CPU, in_a_row=5)
    assert turns == list(range(entered(4, CPU, in_a_row=5) + entered(4, CPU)))
    assert all(0.002 <= one < 0.008 for one in seconds["one"])


def test_a_layer_means_what_its_copies_compute() -> None:
    layer = random_layer(SHAPE, (0.05,), CPU)
    x = torch.randn(3, 256)
    exact = x @ (layer.weight() + layer.dense[0.05]).T
    call = layer.call(x, 0.05, torch.ones(1, 3))
    for turn in (0, 1):
        assert torch.allclose(call(turn), exact, rtol=1e-4, atol=1e-4)


def test_measurements_hold_every_state_and_say_who_was_skipped(monkeypatch) -> None:
    def wrong(layer, dtype):
        right = peers._torch(torch.bfloat16)(layer, dtype)
        return peers.Prepared(lambda x, turn: 2 * right.call(x, turn), right.weight)

    def absent(layer, dtype):
        raise peers.PeerUnavailable("not installed")

    monkeypatch.setitem(peers.PEERS, "wrong", wrong)
    monkeypatch.setitem(peers.PEERS, "absent", absent)
    names = ["torch bf16", "wrong", "absent"]
    found, skipped = bench.measure([SHAPE], [1, 4], (0.05,), names, CPU, rounds=4)
    assert {one.name for one in found if one.rows == 4} == {
        "base only",
        "alpha=0 at 5%",
        "alpha=1 at 5%",
        "alpha mixed at 5%",
        "torch bf16",
        "base's bytes, only read",
    }
    assert all(low <= mid <= high for low, mid, high in (one.microseconds for one in found))
    assert skipped["absent, 64×256, M = 1"] == "not installed"
    assert skipped["wrong, 64×256, M = 4"].startswith("wrong result: relative error ")


@pytest.mark.parametrize(
    "name", ["torch bf16", "torch fp16", "aten int4", "aten int4 + torch sparse"]
)
def test_torch_peers_are_right(name: str) -> None:
    layer = random_layer((64, 256), (0.05,), CPU)
    peers.prepared(name, layer, torch.randn(4, 256).bfloat16())


def test_quick_prints_exactly_its_keys(monkeypatch, capsys) -> None:
    monkeypatch.setattr(kernels, "QUICK_SHAPE", SHAPE)
    monkeypatch.setattr(kernels.quick, "__defaults__", ({1: 4, 16: 4},))
    assert run(["bench", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        "alpha0_vs_base",
        "m1_speedup_vs_bf16",
        "m1_speedup_vs_aten_int4",
        "alpha1_vs_alpha0_density1",
        "alpha1_vs_alpha0_density5",
        "m16_speedup_vs_best",
        "bandwidth_fraction",
        "native_op_calls",
        "expected_op_calls",
    ]
    assert found["native_op_calls"] == found["expected_op_calls"] == 6 * 5 * 8 + 6
    assert all(value > 0 for value in found.values())


def test_results_are_written_and_read_back(tmp_path: Path) -> None:
    found, skipped = bench.measure([SHAPE], [1], (), [], CPU, rounds=4)
    made = collect(found, skipped, device="cpu", dtype="bfloat16", rounds=4)
    path = bench.write(made, tmp_path)
    assert read(path) == made
    path.write_text("{}")
    with pytest.raises(FormatError, match="not a benchmark"):
        read(path)


@pytest.mark.parametrize(
    "arguments", [["--shape", "4096"], ["--peer", "marlin"], ["--device", "cuda"]]
)
def test_bad_arguments_say_what_to_do(arguments: list[str], capsys) -> None:
    if arguments[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert run(["bench", *arguments]) == ERROR
    assert arguments[0] in capsys.readouterr().err


def test_blocks_for_llama_cpp_mean_the_same_matrix() -> None:
    layer = random_layer((16, 256), (), CPU)
    blocks = llama_cpp.q4_0(layer.codes, layer.scales)
    assert blocks.shape == (16, 8, 18)
    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    codes = torch.cat((blocks[..., 2:] & 15, blocks[..., 2:] >> 4), dim=-1).float() - 8
    assert torch.equal((codes * scale).reshape(16, 256), layer.weight())


def test_llama_cpp_is_right_where_it_is_installed() -> None:
    layer = random_layer((64, 256), (), CPU)
    try:
        peers.prepared("llama.cpp q4_0", layer, torch.randn(4, 256).bfloat16())
    except peers.PeerUnavailable as reason:
        pytest.skip(str(reason))
