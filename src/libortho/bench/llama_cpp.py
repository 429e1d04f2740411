"""llama.cpp's Q4_0 matmul on the CPU, through the C interface of its library ggml.

Blocks of 32 codes with an fp16 scale, laid out by ggml for the processor that runs ("repack").
Activations are rounded to int8 by blocks of 32 (Q8_0), so its products are not those of W4A16.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK = 32
F32, Q4_0 = 0, 2
REPACKED_ROWS = 16
"""Outputs must be a multiple of this, whatever layout ggml chooses."""
TENSOR_BYTES = 1 << 10
"""More than ggml needs to describe a tensor."""
GRAPH_BYTES = 1 << 20
_HANDLES = (
    "ggml_init ggml_new_tensor_2d ggml_mul_mat ggml_new_graph ggml_get_data ggml_backend_cpu_init "
    "ggml_backend_cpu_reg ggml_backend_reg_dev_get ggml_backend_reg_get_proc_address "
    "ggml_backend_alloc_ctx_tensors_from_buft ggml_backend_cpu_buffer_type"
)


class _Parameters(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class _Ggml:
    """The functions of libggml-base and libggml-cpu that a matmul takes."""

    def __init__(self) -> None:
        spec = find_spec("llama_cpp")
        folder = Path(spec.origin).parent / "lib" if spec and spec.origin else None
        self._parts = [
            ctypes.CDLL(str(folder / name) if folder else name, ctypes.RTLD_GLOBAL)
            for name in ("libggml-base.so", "libggml-cpu.so")
        ]
        for name in _HANDLES.split():
            self(name).restype = ctypes.c_void_p
        self._quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
            lambda *_: None
        )
        self("ggml_log_set")(self._quiet, None)

    def __call__(self, name: str) -> Any:
        for part in self._parts:
            if hasattr(part, name):
                return getattr(part, name)
        raise OSError(f"this ggml has no {name}")

    def context(self, size: int) -> ctypes.c_void_p:
        """Room for descriptions of tensors and graphs; the data lie in buffers."""
        return ctypes.c_void_p(self("ggml_init")(_Parameters(size, None, True)))

    def matrix(self, context: ctypes.c_void_p, kind: int, rows: int, columns: int) -> Any:
        sizes = ctypes.c_int64(columns), ctypes.c_int64(rows)
        return ctypes.c_void_p(self("ggml_new_tensor_2d")(context, kind, *sizes))

    def allocate(self, context: ctypes.c_void_p, kind: ctypes.c_void_p) -> ctypes.c_void_p:
        return ctypes.c_void_p(self("ggml_backend_alloc_ctx_tensors_from_buft")(context, kind))

    def repacking(self) -> list[ctypes.c_void_p]:
        """The kinds of buffer that lay weights out anew for this processor, the best one first."""
        register = ctypes.c_void_p(self("ggml_backend_cpu_reg")())
        device = ctypes.c_void_p(self("ggml_backend_reg_dev_get")(register, ctypes.c_size_t(0)))
        found = self("ggml_backend_reg_get_proc_address")(
            register, b"ggml_backend_dev_get_extra_bufts"
        )
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(found)(device)
        kinds: list[ctypes.c_void_p] = []
        while listed and listed[len(kinds)]:
            kinds.append(ctypes.c_void_p(listed[len(kinds)]))
        return kinds


def q4_0(codes: Tensor, scales: Tensor) -> Tensor:
    """Codes int8 [N, K] and scales fp16 [N, K / group] as Q4_0: uint8 [N, K / 32, 18].

    A block is its scale and 16 bytes; byte i holds element i below and element 16 + i above, both
    plus 8.
    """
    rows, columns = codes.shape
    unsigned = (codes + 8).to(torch.uint8).view(rows, columns // BLOCK, 2, BLOCK // 2)
    repeats = columns // BLOCK // scales.shape[1]
    scale = scales.half().repeat_interleave(repeats, dim=1).contiguous().view(torch.uint8)
    nibbles = unsigned[:, :, 0] | unsigned[:, :, 1] << 4
    return torch.cat((scale.view(rows, columns // BLOCK, 2), nibbles), dim=2).contiguous()


def matmul(
    codes: Tensor, scales: Tensor, rows: int, copies: int, threads: int
) -> Callable[[Tensor, int], Tensor]:
    """A matmul by Q4_0 weights, in ``copies`` of them.

    Args:
        codes: int8 [N, K]; scales: fp16 [N, K / group].
        rows: M of the inputs.
        threads: of ggml.

    Returns:
        (x [M, K], which copy) → y [M, N] fp32, valid until the next call of that copy.

    Raises:
        OSError: the library is missing, or lacks a function.
    """
    ggml = _Ggml()
    room = (copies + 1) * TENSOR_BYTES
    weights, others = ggml.context(room), ggml.context(room)
    contexts = [weights, others]
    outputs, inputs = codes.shape
    held = [ggml.matrix(weights, Q4_0, outputs, inputs) for _ in range(copies)]
    plain = ctypes.c_void_p(ggml("ggml_backend_cpu_buffer_type")())
    anew = ggml.repacking() if outputs % REPACKED_ROWS == 0 else []
    kind = next(iter(anew), plain)
    buffers = [ggml.allocate(weights, kind)]
    packed = q4_0(codes, scales)
    for one in held:
        ggml("ggml_backend_tensor_set")(
            one,
            ctypes.c_void_p(packed.data_ptr()),
            ctypes.c_size_t(0),
            ctypes.c_size_t(packed.nbytes),
        )
    x_tensor = ggml.matrix(others, F32, rows, inputs)
    products = [ctypes.c_void_p(ggml("ggml_mul_mat")(others, one, x_tensor)) for one in held]
    buffers.append(ggml.allocate(others, plain))
    graphs = []
    for product in products:
        contexts.append(ggml.context(GRAPH_BYTES))
        graph = ctypes.c_void_p(ggml("ggml_new_graph")(contexts[-1]))
        ggml("ggml_build_forward_expand")(graph, product)
        graphs.append(graph)
    backend = ctypes.c_void_p(ggml("ggml_backend_cpu_init")())
    ggml("ggml_backend_cpu_set_n_threads")(backend, threads)
    compute = ggml("ggml_backend_graph_compute")
    x_view = _view(ggml("ggml_get_data")(x_tensor), (rows, inputs))
    views = [_view(ggml("ggml_get_data")(one), (rows, outputs)) for one in products]

    def call(x: Tensor, turn: int) -> Tensor:
        x_view.copy_(x)
        if compute(backend, graphs[turn % copies]) != 0:
            raise OSError("ggml did not compute the product")
        return views[turn % copies]

    weakref.finalize(call, _free, ggml, buffers, contexts)
    return call


def _free(ggml: _Ggml, buffers: Sequence[Any], contexts: Sequence[Any]) -> None:
    for buffer in buffers:
        ggml("ggml_backend_buffer_free")(buffer)
    for context in contexts:
        ggml("ggml_free")(context)


def _view(address: int, shape: tuple[int, int]) -> Tensor:
    count = shape[0] * shape[1]
    memory = (ctypes.c_float * count).from_address(address)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)
