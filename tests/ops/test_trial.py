"""A kernel that does not do what the reference does is found out before it is used."""

from __future__ import annotations

import re

import pytest
import torch
from test_backend import child

from libortho import ops
from libortho.ops import reference, trial


def test_the_native_kernel_passes() -> None:
    assert ops.backend().name == "native", ops.backend().reason
    assert trial.disagreement(torch.ops.libortho.dual_linear.default, "cpu") is None


def test_the_reference_passes() -> None:
    assert trial.disagreement(reference.dual_linear, "cpu") is None


def reads_closed_streams(x, tiles, scales, rows, group, slice_ptr, columns, values, alpha):
    y = reference.dual_linear(x, tiles, scales, rows, group, [], [], [], alpha[:0])
    ones = torch.ones(1, x.shape[0])
    for s, weight in enumerate(alpha):
        stream = [slice_ptr[s]], [columns[s]], [values[s]]
        both = reference.dual_linear(x, tiles, scales, rows, group, *stream, ones)
        y = y + weight[:, None].to(x.dtype) * (both - y)
    return y


def forgets_an_entry(x, tiles, scales, rows, group, slice_ptr, columns, values, alpha):
    values = [value.clone() for value in values]
    for value in values:
        flat = value.view(-1)
        flat[flat.nonzero()[-1]] = 0
    return reference.dual_linear(x, tiles, scales, rows, group, slice_ptr, columns, values, alpha)


def shifts_the_last_scale(x, tiles, scales, rows, group, slice_ptr, columns, values, alpha):
    scales = scales.clone()
    scales[:, -1] *= 1.05
    return reference.dual_linear(x, tiles, scales, rows, group, slice_ptr, columns, values, alpha)


def moves_the_last_row(*arguments):
    y = reference.dual_linear(*arguments)
    if len(y) == 64:
        y[-2] = y[-3]
    return y


def gives_nan(*arguments):
    return reference.dual_linear(*arguments) * float("nan")


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        (reads_closed_streams, "closed"),
        (forgets_an_entry, "off by"),
        (shifts_the_last_scale, "off by"),
        (moves_the_last_row, "64 rows"),
        (gives_nan, "inf times|closed"),
    ],
)
def test_a_broken_kernel_is_found_out(kernel, told: str) -> None:
    found = trial.disagreement(kernel, "cpu")
    assert found is not None
    assert re.search(told, found)


WRONG_ON_CUDA = """
import torch
from libortho import ops
from libortho.ops import Backend, loading, trial
ops.backend()
library = torch.library.Library("libortho", "FRAGMENT")
library.define("cuda_op_calls() -> int")
library.impl("cuda_op_calls", lambda: 0, "CompositeExplicitAutograd")
loading._chosen_cuda = Backend("native", "cuda", "packaged library", None)
torch.cuda.is_current_stream_capturing = lambda: False
torch.cuda.get_device_name = lambda: "some GPU"
trial.disagreement = lambda kernel, device: "off by a mile"
loading.try_cuda()
loading.try_cuda()
print(ops.cuda_backend().name, "|", ops.cuda_backend().reason)
"""


def test_a_cuda_kernel_that_is_wrong_gives_way_to_the_reference() -> None:
    done = child(WRONG_ON_CUDA)
    assert done.returncode == 0, done.stderr
    told = "packaged library, but on some GPU it is wrong: off by a mile"
    assert done.stdout.strip().splitlines()[-1] == f"reference | {told}"
    assert told in done.stderr


def test_a_cuda_kernel_that_is_wrong_is_an_error_where_native_is_demanded() -> None:
    done = child(WRONG_ON_CUDA, LIBORTHO_BACKEND="native")
    assert done.returncode != 0
    assert "BackendUnavailable" in done.stderr
    assert "off by a mile" in done.stderr
