"""Builds the native CPU library where a compiler and torch are at hand, else a pure package; the
CUDA one too where nvcc and a torch with CUDA are.

A pure package compiles the same sources on first use (``libortho.ops``). pip hides torch from
isolated builds: ``pip install --no-build-isolation .`` packages the library.
"""

import importlib.util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent


def load_build():
    spec = importlib.util.spec_from_file_location("build", ROOT / "src/libortho/ops/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()
torch = importlib.util.find_spec("torch")


class BuildNative(build_ext):
    def build_extension(self, extension):
        library = Path(self.get_ext_fullpath(extension.name))
        try:
            build.build(library, Path(torch.origin).parent, cuda=extension.name.endswith("_cuda"))
        except build.BuildError as error:
            raise CompileError(f"{error}; the package will compile it on first use") from error


def native():
    if torch is None or build.compiler() is None:
        missing = "torch" if torch is None else "a C++ compiler"
        print(f"libortho: {missing} is not in the build environment, so the package is pure;")
        print("libortho: its kernels are compiled on first use. To package them instead:")
        print("libortho: pip install --no-build-isolation .")
        return []
    found = [("libortho._native", build.UNITS)]
    obstacle = build.cuda_obstacle(Path(torch.origin).parent)
    if obstacle is None:
        found.append(("libortho._native_cuda", build.CUDA_UNITS))
    else:
        print(f"libortho: no CUDA library: {obstacle}")
    return [
        Extension(
            name,
            [f"src/libortho/csrc/{unit}" for unit in units],
            py_limited_api=True,
            optional=True,
        )
        for name, units in found
    ]


setup(
    ext_modules=native(),
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
