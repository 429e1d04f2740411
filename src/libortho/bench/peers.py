"""Other people's kernels on the same layer, each checked before it is timed.

Optional packages are imported where they are used. A peer that is missing, fails or computes
something else is skipped, and the reason is part of the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from torch import Tensor

from libortho.bench import llama_cpp
from libortho.bench.layers import RandomLayer, copies_of
from libortho.bench.timing import Call, record

PEER_ERROR = 0.02
"""Largest |y - exact| / |exact|, Frobenius: bf16 weights and sums stay ten times below."""


class PeerUnavailable(Exception):
    """Why a peer is not measured."""


@dataclass(frozen=True)
class Prepared:
    """A peer on one layer.

    Attributes:
        call: (x, which copy of the weights) → y [M, N].
        weight: fp32 [N, K], the matrix that the peer multiplies by.
    """

    call: Callable[[Tensor, int], Tensor]
    weight: Tensor


def prepared(name: str, layer: RandomLayer, x: Tensor) -> Call:
    """A checked peer, ready to be timed on x [M, K].

    Raises:
        PeerUnavailable: with the reason.
    """
    try:
        peer = PEERS[name](layer, x.dtype)
        found = peer.call(x, 0).double()
        if x.is_cuda:
            record(partial(peer.call, x), itertools.count(), 1)
    except PeerUnavailable:
        raise
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        raise PeerUnavailable(f"{type(error).__name__}: {said[0]}") from error
    exact = x.double() @ peer.weight.double().T
    error_found = float((found - exact).norm() / exact.norm())
    if not error_found <= PEER_ERROR:
        raise PeerUnavailable(f"wrong result: relative error {error_found:.3g} > {PEER_ERROR}")
    return lambda turn: peer.call(x, turn)


def _torch(dtype: torch.dtype) -> Callable[[RandomLayer, torch.dtype], Prepared]:
    def prepare(layer: RandomLayer, _: torch.dtype) -> Prepared:
        weight = layer.weight()
        first = weight.to(dtype)
        copies = [first.clone() for _ in range(copies_of(first.nbytes))]

        def call(x: Tensor, turn: int) -> Tensor:
            return torch.nn.functional.linear(x.to(dtype), copies[turn % len(copies)])

        return Prepared(call, weight)

    return prepare


def _aten_int4(layer: RandomLayer, dtype: torch.dtype) -> Prepared:
    """torch's own W4A16 matmul: ``_weight_int4pack_mm`` and its CPU sibling."""
    codes = layer.codes.int() + 8
    # [K / group, N, 2]: scale, and the value of code 8, which is 0 here.
    scales = torch.stack((layer.scales.T, torch.zeros_like(layer.scales.T)), dim=-1)
    scales = scales.to(dtype).contiguous()
    group = layer.group_size
    if layer.device.type == "cpu":
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    else:
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
        multiply = torch.ops.aten._weight_int4pack_mm
    copies = [(packed.clone(), scales.clone()) for _ in range(copies_of(packed.nbytes))]

    def call(x: Tensor, turn: int) -> Tensor:
        weights, scale = copies[turn % len(copies)]
        y: Tensor = multiply(x, weights, group, scale)
        return y

    rounded = layer.codes.float() * layer.scales.to(dtype).float().repeat_interleave(group, dim=1)
    return Prepared(call, rounded)


def _naive_dual(layer: RandomLayer, dtype: torch.dtype) -> Prepared:
    """The dual stream without a fused kernel: an int4 matmul, a sparse one, and a sum."""
    if not layer.dense:
        raise PeerUnavailable("the layer has no stream")
    base = _aten_int4(layer, dtype)
    ortho = next(iter(layer.dense.values()))
    sparse = ortho.to_sparse_csr()
    copies = [sparse.clone() for _ in range(copies_of(sparse.values().nbytes * 2))]

    def call(x: Tensor, turn: int) -> Tensor:
        part = (copies[turn % len(copies)] @ x.T.float()).T
        return base.call(x, turn) + part.to(x.dtype)

    return Prepared(call, base.weight + ortho)


def _bitsandbytes(layer: RandomLayer, dtype: torch.dtype) -> Prepared:
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise PeerUnavailable(f"not installed: {error}") from error
    quantised, state = bnb.functional.quantize_4bit(
        layer.weight().to(dtype), blocksize=64, quant_type="nf4"
    )
    copies = [quantised.clone() for _ in range(copies_of(quantised.nbytes))]
    weight = bnb.functional.dequantize_4bit(quantised, state).float()

    def call(x: Tensor, turn: int) -> Tensor:
        y: Tensor = bnb.matmul_4bit(x, copies[turn % len(copies)].t(), quant_state=state)
        return y

    return Prepared(call, weight)


def _torchao(layer: RandomLayer, dtype: torch.dtype) -> Prepared:
    """torchao's fastest W4A16 format of the device; that of the CPU is among its prototypes."""
    rows, columns = layer.shape
    try:
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        if layer.device.type == "cpu":
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

            config = PrototypeInt4WeightOnlyConfig(layer.group_size, set_inductor_config=False)
        else:
            config = Int4WeightOnlyConfig(
                group_size=layer.group_size, int4_packing_format="tile_packed_to_4d"
            )
    except ImportError as error:
        raise PeerUnavailable(f"not installed: {error}") from error
    modules = []
    for _ in range(copies_of(rows * columns // 2)):
        module = torch.nn.Linear(columns, rows, bias=False, device=layer.device, dtype=dtype)
        module.weight.data.copy_(layer.weight())
        quantize_(module, config)
        modules.append(module)
    # Its own rounding to 4 bits: the identity reads the matrix back.
    eye = torch.eye(columns, dtype=dtype, device=layer.device)
    weight = modules[0](eye).T.float()

    def call(x: Tensor, turn: int) -> Tensor:
        y: Tensor = modules[turn % len(modules)](x)
        return y

    return Prepared(call, weight)


def _vllm(layer: RandomLayer, dtype: torch.dtype) -> Prepared:
    """The kernel that vLLM chooses for such a checkpoint here: Machete or Marlin on most GPUs."""
    try:
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.model_executor.kernels.linear import choose_mp_linear_kernel
        from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (
            MPLinearLayerConfig,
        )
        from vllm.scalar_type import scalar_types
    except ImportError as error:
        raise PeerUnavailable(f"not installed: {error}") from error
    rows, columns = layer.shape
    # The layouts that compressed-tensors has on disk, told as vLLM's own parameters tell them.
    packed = pack_to_int32(layer.codes.to(torch.int8), 4).to(layer.device)
    scales = layer.scales.to(dtype)
    config = MPLinearLayerConfig(
        full_weight_shape=(columns, rows),
        partition_weight_shape=(columns, rows),
        weight_type=scalar_types.uint4b8,
        act_type=dtype,
        group_size=layer.group_size,
        zero_points=False,
    )
    modules = []
    with set_current_vllm_config(VllmConfig()), torch.device(layer.device):
        kernel = choose_mp_linear_kernel(config)(config, "weight_packed", "weight_scale")
        for _ in range(copies_of(packed.nbytes)):
            module = torch.nn.Module()
            module.register_parameter("bias", None)
            module.weight_packed = _marked(packed, packed_dim=1, packed_factor=8)
            module.weight_scale = _marked(scales)
            kernel.process_weights_after_loading(module)
            modules.append(module)

    def call(x: Tensor, turn: int) -> Tensor:
        y: Tensor = kernel.apply_weights(modules[turn % len(modules)], x)
        return y

    return Prepared(
        call, layer.codes.float() * scales.float().repeat_interleave(layer.group_size, dim=1)
    )


def _marked(tensor: Tensor, **marks: int) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(tensor.clone(), requires_grad=False)
    for name, value in {"input_dim": 1, "output_dim": 0, **marks}.items():
        setattr(parameter, name, value)
    return parameter


def _llama_cpp(layer: RandomLayer, _: torch.dtype) -> Prepared:
    if layer.device.type != "cpu":
        raise PeerUnavailable("measured on the CPU only")
    copies = copies_of(layer.codes.numel() * 9 // 16)
    made: dict[int, Callable[[Tensor, int], Tensor]] = {}

    def call(x: Tensor, turn: int) -> Tensor:
        if x.shape[0] not in made:
            made[x.shape[0]] = llama_cpp.matmul(
                layer.codes, layer.scales, x.shape[0], copies, torch.get_num_threads()
            )
        return made[x.shape[0]](x, turn)

    return Prepared(call, layer.weight())


PEERS: dict[str, Callable[[RandomLayer, torch.dtype], Prepared]] = {
    "torch bf16": _torch(torch.bfloat16),
    "torch fp16": _torch(torch.float16),
    "aten int4": _aten_int4,
    "vllm int4": _vllm,
    "torchao int4": _torchao,
    "llama.cpp q4_0": _llama_cpp,
    "bitsandbytes nf4": _bitsandbytes,
    "aten int4 + torch sparse": _naive_dual,
}
"""By name: makes the peer from a layer, in the dtype of the activations."""
