"""Peers' weight orders, read back as their kernels read them; what a peer without library says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cuda_peers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import check, cutlass, layers, spqr
from peers.check import KINDS, checked, distance
from peers.entry import KernelRefused, entry
from peers.marlin import Marlin
from peers.peer import Peer
from peers.spqr import SpQR
from peers.squeezellm import SqueezeLLM

from libortho import ops
from libortho.errors import BackendUnavailable
from libortho.layout import BaseTiles, untile_base

ROOT = Path(__file__).parents[2]
shapes = st.tuples(st.sampled_from((64, 128)), st.sampled_from((128, 256)))
seeds = st.integers(0, 1000)


def unbound(kind: type[Peer]) -> Peer:
    """A peer whose library is not there: it can pack, and nothing else."""
    peer = object.__new__(kind)
    peer.__dict__["_locks"] = {}
    return peer


def base_of(shape: tuple[int, int], seed: int) -> BaseTiles:
    torch.manual_seed(seed)
    return layers.random_base(*shape, device="cpu")


def nibble(word: int, place: int) -> int:
    return (word >> 4 * place) & 15


@settings(max_examples=4, deadline=None)
@given(shapes, seeds)
def test_marlin_lanes_hold_the_operands_of_the_tensor_core(
    shape: tuple[int, int], seed: int
) -> None:
    """By the operand layout of mma.m16n8k16 in the PTX manual, and the kernel's unpacking.

    Two masks of a word, 0x000f000f and 0x00f000f0, and the same after a shift by 8, are the four
    registers of two operands: nibbles 0 and 4, 1 and 5, then 2 and 6, 3 and 7.
    """
    base = base_of(shape, seed)
    words, scales, _ = unbound(Marlin).pack(base)
    codes, wanted_scales = untile_base(base)
    words = words.view(shape[1] // 16, shape[0] // 64, 32, 4)
    for tile_k, tile_n, lane in (
        (0, 0, 0),
        (1, 0, 5),
        (shape[1] // 16 - 1, shape[0] // 64 - 1, 31),
    ):
        for j in range(4):
            word = int(words[tile_k, tile_n, lane, j])
            for operand, register, half in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
                k = 16 * tile_k + 8 * register + 2 * (lane % 4) + half
                n = 64 * tile_n + 16 * j + 8 * operand + lane // 4
                assert nibble(word, 2 * operand + register + 4 * half) == int(codes[n, k]) + 8
                # Eight scales of a lane's outputs lie together.
                place = 64 * tile_n + 8 * (lane // 4) + 2 * j + operand
                assert scales[k // 128, place] == wanted_scales[n, k // 128]


def test_marlin_drops_and_doubles_no_code() -> None:
    base = base_of((128, 256), 3)
    words = unbound(Marlin).pack(base)[0]
    found = torch.stack([(words >> 4 * place) & 15 for place in range(8)]).flatten()
    wanted = layers.offset_codes(base).flatten()
    assert torch.equal(found.bincount(minlength=16), wanted.bincount(minlength=16))


@settings(max_examples=4, deadline=None)
@given(shapes, seeds)
def test_squeezellm_words_are_walked_down_a_column(shape: tuple[int, int], seed: int) -> None:
    base = base_of(shape, seed)
    peer = unbound(SqueezeLLM)
    words, tables = peer.pack(base)
    x = torch.randn(shape[1])
    walked = torch.zeros(shape[0])
    for row in range(shape[1] // 8):
        for place in range(8):
            codes = ((words[row] >> 4 * place) & 15).long()
            walked += tables.gather(1, codes[:, None])[:, 0] * x[8 * row + place]
    dense = peer.dense(base, (words, tables))
    assert distance(walked, dense @ x) < 2.0**-24 * shape[1]


@settings(max_examples=4, deadline=None)
@given(seeds)
def test_spqr_words_are_decoded_as_lanes_do(seed: int) -> None:
    torch.manual_seed(seed)
    words = spqr.random_words(32, 48, "cpu")
    dense = spqr.dense_of(words)
    assert dense.shape == (32, 48)
    assert dense.isfinite().all()
    for tile_n, tile_k, row in ((0, 0, 0), (1, 2, 15), (1, 0, 6)):
        whole = 0
        for lane in range(row % 2, 16, 2):
            whole |= (int(words[tile_n, tile_k, lane]) >> 54) << (8 * (lane // 2))
        bits = torch.tensor([whole - (1 << 64) if whole >> 63 else whole])
        numbers = bits.view(torch.float16)
        word = int(words[tile_n, tile_k, row])
        scale = numbers[0] * ((word & 7) - numbers[2])
        zero = numbers[1] * ((word >> 3 & 7) - numbers[3])
        for column in range(16):
            weight = scale * ((word >> (6 + 3 * column) & 7) - zero)
            assert dense[16 * tile_n + row, 16 * tile_k + column] == float(weight)


def test_spqr_entries_are_columns_below_values() -> None:
    torch.manual_seed(0)
    csr = layers.random_csr(32, 512, 0.1, device="cpu")
    pointers, entries = unbound(SpQR).pack_stream(csr)
    rebuilt = torch.zeros(32, 512)
    for row in range(32):
        for one in entries[pointers[row] : pointers[row + 1]].tolist():
            value = torch.tensor([one >> 16], dtype=torch.int16).view(torch.float16)
            rebuilt[row, one & 0xFFFF] = float(value)
    assert torch.equal(rebuilt, csr.to_dense().half().float())


def test_cutlass_starts_from_rows_of_nibbles() -> None:
    codes = torch.tensor([[-8, 7, 0, -1], [1, 2, 3, 4]], dtype=torch.int8)
    assert cutlass.row_major(codes).tolist() == [[0x78, 0xF0], [0x21, 0x43]]


def test_a_stream_is_the_same_to_the_op_and_to_cusparse() -> None:
    torch.manual_seed(0)
    csr = layers.random_csr(64, 256, 0.05, device="cpu")
    tiles, values = layers.tiled(csr)
    rebuilt = torch.zeros(64, 256 + 1)
    slices = torch.arange(4).repeat_interleave(tiles.slice_ptr.diff().long())
    rows = slices[:, None] * 16 + torch.arange(16)
    rebuilt[rows.flatten(), tiles.columns.flatten().long()] = values.flatten().float()
    assert torch.equal(rebuilt[:, :256], csr.to_dense().half().float())


def test_a_distance_to_nan_is_never_small() -> None:
    wanted = torch.ones(3)
    assert distance(torch.tensor([1.0, 1.5, 1.0]), wanted) == 0.5
    assert distance(torch.tensor([1.0, float("nan"), 1.0]), wanted) == float("inf")


def test_a_peer_without_library_is_skipped_with_the_reason() -> None:
    passed, skipped = checked(dict.fromkeys(KINDS), [(256, 128)], [1])
    assert not passed
    assert set(skipped) == {"Marlin", "CUTLASS", "SpQR", "SqueezeLLM"}
    assert all(f"--{kind}" in skipped[KINDS[kind].name] for kind in KINDS)
    assert all((ROOT / why.split("; ")[1].split()[0]).is_file() for why in skipped.values())


def test_a_library_that_cannot_be_used_is_skipped_with_the_reason(tmp_path: Path) -> None:
    torn = tmp_path / "torn.so"
    torn.write_bytes(b"\x7fELF and no more")
    passed, skipped = checked({"marlin": torn}, [(256, 128)], [1])
    assert not passed
    assert "KernelRefused" in skipped["Marlin"]
    assert str(torn) in skipped["Marlin"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_library_that_ends_its_check_in_silence_is_skipped(tmp_path: Path) -> None:
    source, library = tmp_path / "quits.c", tmp_path / "quits.so"
    source.write_text(
        "#include <unistd.h>\n__attribute__((constructor)) static void quit(void) { _exit(0); }"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    passed, skipped = checked({"marlin": library}, [(256, 128)], [1])
    assert not passed
    assert skipped["Marlin"].startswith("its check told nothing of its variants")


@pytest.mark.skipif(ops.cuda_backend().name == "native", reason="the kernel is there")
def test_the_benchmark_says_that_the_kernel_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["cuda_peers.py", "--commit", "c0ffee", "--json", str(out)])
    with pytest.raises(BackendUnavailable, match=r"the backend on CUDA is .*, expected native: ."):
        cuda_peers.main()
    assert not out.exists()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_refusal_of_a_library_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, library = tmp_path / "stub.c", tmp_path / "stub.so"
    source.write_text(
        "int first(const int* a, int n, const void* none, void* stream)"
        "{ return a[0] - n + (none != 0) + (stream != (void*)7); }"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    on_seven = type("Stream", (), {"cuda_stream": 7})
    monkeypatch.setattr(torch.cuda, "current_stream", on_seven)
    first = entry(library, "first")
    first(torch.tensor([5], dtype=torch.int32), 5, None)
    with pytest.raises(KernelRefused, match="first returned -3"):
        first(torch.tensor([5], dtype=torch.int32), 8, None)
    with pytest.raises(ValueError, match="contiguous"):
        first(torch.zeros(4, 4).T, 0, None)
    with pytest.raises(KernelRefused, match="second"):
        entry(library, "second")


class Several(SqueezeLLM):
    """Right, and wrong in four ways: off, NaN, deaf to its stream, unwilling."""

    variants = ("right", "off", "nan", "deaf", "unwilling")

    def __init__(self) -> None:
        self.dense_of: dict[int, torch.Tensor] = {}

    def dense(self, base: BaseTiles, packed: check.Tensors) -> torch.Tensor:
        self.dense_of[id(packed[0])] = super().dense(base, packed)
        return self.dense_of[id(packed[0])]

    def multiply(
        self,
        x: torch.Tensor,
        packed: check.Tensors,
        stream: check.Tensors | None,
        variant: str,
    ) -> torch.Tensor:
        y = x @ self.dense_of[id(packed[0])].T
        if variant == "unwilling" and len(x) == 3:
            raise KernelRefused("peer_several returned -5")
        if stream is not None and variant != "deaf":
            y = y + x @ torch.sparse_csr_tensor(*stream, (y.shape[1], x.shape[1])).to_dense().T
        if variant == "nan":
            y[-1, -1] = float("nan")
        return y * 1.02 if variant == "off" else y


def test_a_wrong_variant_is_found_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "DEVICE", "cpu")
    monkeypatch.setattr(check, "captured", lambda call: call())
    torch.manual_seed(0)
    found = check.verdicts(Several(), [(64, 256)], [1, 3, 99])
    assert found["right"].keys() == {"error"}
    assert found["right"]["error"] < 2.0**-24 * 256
    assert found["off"] == {"wrong": "64x256, 1 rows: off by 0.02 of the largest result"}
    assert found["nan"] == {"wrong": "64x256, 1 rows: off by inf of the largest result"}
    assert str(found["deaf"]["wrong"]).startswith("64x256, 1 rows, a stream: off by")
    assert found["unwilling"] == {"wrong": "64x256, 3 rows: peer_several returned -5"}
