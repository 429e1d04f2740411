"""Which implementation runs: the instruction sets agree, and every fall-back says itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_layer import make_case

from libortho import ops
from libortho.ops import build, reference
from libortho.ops.schema import SCHEMAS

FOLDER = Path(__file__).parent
NEEDS = {"scalar": set(), "avx2": {"avx2", "fma", "f16c"}}
NEEDS["avx512"] = NEEDS["avx2"] | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
NEEDS["avx512bf16"] = NEEDS["avx512"] | {"avx512_bf16"}
SHAPES = [(100, 256, 128), (40, 96, 32)]
BATCHES = (1, 2, 3, 4, 7, 16, 17, 70)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

RUN_CASES = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_backend import results
torch.save(results(), sys.argv[1])
"""


def child(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    source = Path(build.__file__).parents[2]
    settings = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


def samples():
    """The same layers, inputs and gates in every process."""
    for number, (rows, columns, group) in enumerate(SHAPES):
        layer = make_case(rows, columns, group, (0.05, 0.3), seed=number)
        for batch in BATCHES:
            generator = torch.Generator().manual_seed(batch)
            x = torch.randn(batch, columns, generator=generator)
            alpha = torch.rand(2, batch, generator=generator)
            alpha[0, ::2] = 0
            yield layer, x, alpha


def results() -> list[torch.Tensor]:
    found = []
    for layer, x, alpha in samples():
        found += [layer(x.to(dtype), alpha) for dtype in DTYPES]
        values = layer.streams[0][1].float().requires_grad_()
        streams = [(layer.streams[0][0], values)]
        x = x.clone().requires_grad_()
        ops.dual_linear(x, layer.base, streams, alpha[:1]).sum().backward()
        found += [x.grad, values.grad]
    return found


def bounds() -> list[torch.Tensor]:
    """Each implementation's distance from the exact result: see Case.bound and test_autograd."""
    found = []
    for layer, x, alpha in samples():
        found += [layer.bound(x.to(dtype), alpha) for dtype in DTYPES]
        values = layer.streams[0][1]
        rows, batch = layer.weight.shape[0], x.shape[0]
        unit = 2.0**-24 * 1.01
        ortho = alpha[0].double()[:, None] * layer.orthos[0].abs().sum(0)
        largest = x.double().abs().sum(0).max()
        found.append((2 * rows + 4) * unit * (layer.weight.abs().sum(0) + ortho))
        found.append(torch.full(values.shape, float((batch + 4) * unit * largest)))
    return found


def cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


@pytest.mark.usefixtures("native")
def test_instruction_sets_agree(tmp_path: Path) -> None:
    """Every two of this CPU's instruction sets, within the sum of their bounds; others refuse."""
    outputs = {}
    for isa, needed in NEEDS.items():
        ran = child(RUN_CASES, tmp_path / isa, FOLDER, LIBORTHO_ISA=isa, LIBORTHO_BACKEND="native")
        if needed <= cpu_flags():
            assert ran.returncode == 0, ran.stderr
            outputs[isa] = torch.load(tmp_path / isa)
        else:
            assert ran.returncode != 0
            assert f"BackendUnavailable: LIBORTHO_ISA={isa}" in ran.stderr
    assert "scalar" in outputs
    for first in outputs:
        for second in outputs:
            for a, b, bound in zip(outputs[first], outputs[second], bounds(), strict=True):
                assert ((a.double() - b.double()).abs() <= 2 * bound).all(), (first, second)


@pytest.mark.usefixtures("native")
def test_reference_means_the_same(tmp_path: Path) -> None:
    ran = child(RUN_CASES, tmp_path / "reference", FOLDER, LIBORTHO_BACKEND="reference")
    assert ran.returncode == 0, ran.stderr
    for a, b, bound in zip(torch.load(tmp_path / "reference"), results(), bounds(), strict=True):
        assert ((a.double() - b.double()).abs() <= 2 * bound).all()


def test_reference_backend_says_itself() -> None:
    """The same schemas, no native calls, and opcheck holds."""
    code = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from libortho import ops
from random_layer import make_case
layer = make_case(20, 32, densities=(0.1,), value_dtype=torch.float32)
assert ops.backend() == ops.Backend("reference", "torch", "LIBORTHO_BACKEND=reference", None)
x = torch.randn(3, 32, requires_grad=True)
layer.streams[0][1].requires_grad_()
arguments = layer.arguments(x, torch.tensor([[0.0, 1.0, 0.5]]))
checks = ("test_schema", "test_autograd_registration", "test_faketensor")
torch.library.opcheck(torch.ops.libortho.dual_linear, arguments, test_utils=checks)
assert ops.native_op_calls() == ops.dense_route_calls() == 0
for name in ("dual_linear", "dual_linear_backward", "add_streams"):
    print(getattr(torch.ops.libortho, name).default._schema)
"""
    ran = child(code, FOLDER, LIBORTHO_BACKEND="reference")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [f"libortho::{schema}" for schema in SCHEMAS]


@pytest.mark.usefixtures("native")
def test_native_schemas_are_the_same() -> None:
    for schema in SCHEMAS:
        name = schema.split("(")[0]
        assert str(getattr(torch.ops.libortho, name).default._schema) == f"libortho::{schema}"


def test_without_a_compiler(tmp_path: Path) -> None:
    """An error where native is required, else the reference with one warning that says why."""
    code = """
import os, pathlib
import libortho.ops.loading as loading
from libortho.errors import BackendUnavailable, ConfigError
loading._PACKAGED = pathlib.Path("/nonexistent")
for wanted, error in (("fast", ConfigError), ("native", BackendUnavailable)):
    os.environ["LIBORTHO_BACKEND"] = wanted
    try:
        loading.backend()
    except error as caught:
        print(caught)
del os.environ["LIBORTHO_BACKEND"]
print(loading.backend())
"""
    ran = child(code, PATH="", CXX="", XDG_CACHE_HOME=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    unknown, unavailable, chosen = ran.stdout.splitlines()
    assert "must be native or reference, found 'fast'" in unknown
    assert "no C++ compiler found" in unavailable
    assert chosen.startswith("Backend(name='reference'")
    assert ran.stderr.count("no C++ compiler found") == 1


@pytest.mark.usefixtures("native")
def test_unknown_instruction_set_is_refused() -> None:
    ran = child("from libortho import ops; ops.backend()", LIBORTHO_ISA="mmx", LIBORTHO_BACKEND="")
    assert ran.returncode != 0
    assert "none of scalar, avx2, avx512, avx512bf16" in ran.stderr


def test_compiler_errors_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "csrc"
    (broken / "core").mkdir(parents=True)
    (broken / "core" / "layer.cpp").write_text("int broken( {\n")
    monkeypatch.setattr(build, "SOURCES", broken)
    monkeypatch.setattr(build, "UNITS", ("core/layer.cpp",))
    with pytest.raises(build.BuildError, match="error"):
        build.build(tmp_path / "out.so", Path(torch.__file__).parent)
    assert not (tmp_path / "out.so").exists()


def test_key_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.source_key()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    assert build.source_key() != before
    library = tmp_path / "library.so"
    library.write_bytes(b"libortho-source-key:" + before.encode())
    assert not build.matches_sources(library)


def test_selection_drops_what_a_closed_row_computed() -> None:
    """Where alpha cannot be looked at (CUDA), NaN is computed and then not chosen."""
    y, x = torch.randn(3, 4), torch.randn(3, 5)
    weight = torch.full((4, 5), float("nan"))
    out = reference._add_by_selection(y, x, weight, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(out[::2], y[::2])
    assert out[1].isnan().all()
