"""A C function of a shared library that takes device pointers and a stream, called with tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


class KernelRefused(RuntimeError):
    """A library lacks a function, or its function returned another number than 0."""


def entry(library: Path, name: str) -> Callable[..., None]:
    """The function ``name`` of ``library``, called with tensors, numbers and None.

    It gets the address of a tensor, an int for a number, NULL for None, and as its last argument
    the stream that torch works on, which inside a CUDA graph is the captured one. It must return an
    int: 0, a cudaError_t above 0, or a refusal of its own below 0.

    Raises:
        KernelRefused: the library cannot be loaded, or lacks the function; on a call, another
            return than 0.
    """
    try:
        function = getattr(ctypes.CDLL(str(library.resolve())), name)
    except (OSError, AttributeError) as error:
        raise KernelRefused(f"{library}: {error}") from error
    function.restype = ctypes.c_int

    def call(*arguments: Tensor | int | None) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        code = function(*(_argument(one) for one in arguments), stream)
        if code:
            raise KernelRefused(f"{name} returned {code}")

    return call


def _argument(given: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_int:
    if isinstance(given, int):
        return ctypes.c_int(given)
    if given is None:
        return ctypes.c_void_p(None)
    if not given.is_contiguous():
        raise ValueError(f"a kernel wants contiguous tensors, found strides {given.stride()}")
    return ctypes.c_void_p(given.data_ptr())
