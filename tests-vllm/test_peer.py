"""vLLM's own INT4 kernel as a peer of ``libortho bench``."""

from __future__ import annotations

import torch

from libortho.bench.layers import random_layer
from libortho.bench.peers import prepared


def test_the_kernel_that_vllm_chooses_here_multiplies_by_the_layer() -> None:
    layer = random_layer((256, 512), (), torch.device("cpu"))
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    call = prepared("vllm int4", layer, x)  # checked against float64 there
    assert call(0).shape == (4, 256)
    assert torch.equal(call(0), call(1))
