"""An INT4 kernel for float32 models on a CPU, where vLLM's own computes 16-bit types only."""

from __future__ import annotations

from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from torch import Tensor
from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS, register_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (
    MPLinearKernel,
    MPLinearLayerConfig,
)
from vllm.model_executor.layers.quantization.utils import replace_parameter
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import scalar_types

from libortho import ops
from libortho.errors import UnsupportedLayer
from libortho.layout import GROUP_SIZES, BaseTiles, tile_base

BITS = 4


class OrthoFloat32Kernel(MPLinearKernel):  # type: ignore[misc]
    """``libortho::dual_linear`` with no stream: the base in float32."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """(whether this kernel can run the layer, why not)."""
        if not current_platform.is_cpu() or c.act_type != torch.float32:
            return False, "only for float32 on a CPU"
        if c.weight_type != scalar_types.uint4b8 or c.zero_points:
            return False, "only for symmetric INT4"
        if c.group_size not in GROUP_SIZES:
            return False, f"group size {c.group_size} is none of {GROUP_SIZES}"
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        """Put the packed weight [N, K/8] and the scales [N, K/g] into tiles."""
        ops.backend()  # chosen now: compiled code could not
        packed, scales = getattr(layer, self.w_q_name).data, getattr(layer, self.w_s_name).data
        inputs, outputs = self.config.partition_weight_shape
        codes = unpack_from_int32(packed, BITS, torch.Size((outputs, inputs)))
        tiled = tile_base(codes, _narrow(scales), self.config.group_size)
        for name, tensor in ((self.w_q_name, tiled.tiles), (self.w_s_name, tiled.scales)):
            replace_parameter(layer, name, torch.nn.Parameter(tensor, requires_grad=False))

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] → [..., N]."""
        inputs, outputs = self.config.partition_weight_shape
        tiles, scales = getattr(layer, self.w_q_name), getattr(layer, self.w_s_name)
        base = BaseTiles(tiles, scales, (outputs, inputs), self.config.group_size)
        flat = x.reshape(-1, inputs)
        y = ops.dual_linear(flat, base, [], flat.new_empty(0, flat.shape[0]))
        if bias is not None:
            y = y + bias
        return y.reshape(*x.shape[:-1], outputs)


def _narrow(scales: Tensor) -> Tensor:
    """The 16-bit scales that vLLM widened to float32, exactly."""
    for dtype in (torch.bfloat16, torch.float16):
        narrow = scales.to(dtype)
        if torch.equal(narrow.to(scales.dtype), scales):
            return narrow
    raise UnsupportedLayer("scales are neither bfloat16 nor float16 as they were stored")


def register_kernel() -> None:
    """Offer the kernel first: vLLM's own says yes to float32, too, and fails when it is called."""
    register_linear_kernel(OrthoFloat32Kernel, PlatformEnum.CPU)
    kernels = _POSSIBLE_KERNELS[PlatformEnum.CPU]
    kernels.insert(0, kernels.pop())
