"""Memory on 2 MiB pages: a kernel that reads weights once misses the TLB at every 4 KiB otherwise.

Linux gives anonymous memory large pages on request (``madvise``, "Transparent Hugepage Support" in
its administration guide). Where it does not, tensors stay as they are.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

PAGE = 2 << 20


def on_large_pages(tensor: Tensor) -> Tensor:
    """A copy of a contiguous tensor in memory of its own that asks for 2 MiB pages.

    Returns:
        The same values; ``tensor`` itself where it is smaller than a page, not on a CPU, or the
        system has no such pages. What is left after the last whole page lies on small ones.
    """
    if tensor.device.type != "cpu" or tensor.nbytes < PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    area = mmap.mmap(-1, tensor.nbytes + PAGE, flags=private)
    start = -torch.frombuffer(area, dtype=torch.uint8, count=1).data_ptr() % PAGE
    try:
        area.madvise(mmap.MADV_HUGEPAGE, start, tensor.nbytes // PAGE * PAGE)
    except OSError:  # a kernel without large pages
        return tensor
    placed = torch.frombuffer(area, dtype=tensor.dtype, count=tensor.numel(), offset=start)
    return placed.view(tensor.shape).copy_(tensor)
