"""Weights on 2 MiB pages: the same values, in memory that the system has made of large pages."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch

from libortho.layout import tile_base
from libortho.pages import PAGE, on_large_pages

GRANTED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SMAPS = Path("/proc/self/smaps")


def large_bytes(address: int) -> int:
    """AnonHugePages of the mapping that holds ``address``."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return 1024 * int(line.split()[1])
    return 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.int16])
def test_a_copy_holds_the_same_values_in_memory_of_its_own(dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 100, (3, PAGE // 2 + 5)).to(dtype)
    placed = on_large_pages(tensor)
    assert torch.equal(placed, tensor)
    assert placed.dtype == dtype
    assert placed.data_ptr() != tensor.data_ptr()
    assert placed.data_ptr() % PAGE == 0
    placed.zero_()
    assert int(tensor.max()) == 99
    assert placed.untyped_storage().nbytes() == tensor.nbytes


def test_small_tensors_stay_where_they_are() -> None:
    tensor = torch.zeros(PAGE - 1, dtype=torch.uint8)
    assert on_large_pages(tensor) is tensor


def test_a_kernel_without_large_pages_leaves_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    tensor = torch.zeros(PAGE, dtype=torch.uint8)
    assert on_large_pages(tensor) is tensor


@pytest.mark.skipif(
    not GRANTED.exists() or "[never]" in GRANTED.read_text(), reason="no large pages here"
)
def test_the_tiles_of_a_base_lie_on_large_pages() -> None:
    rows, columns = 2 * PAGE // 512, 1024
    codes = torch.zeros(rows, columns, dtype=torch.int8)
    base = tile_base(codes, torch.ones(rows, columns // 128).half(), 128)
    assert base.tiles.nbytes == 2 * PAGE
    assert large_bytes(base.tiles.data_ptr()) >= PAGE
