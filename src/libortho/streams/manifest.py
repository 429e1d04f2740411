"""``libortho.json``: what a base directory says of itself, and of nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

FORMAT_VERSION = 1
MANIFEST_FILE = "libortho.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Method = Literal["absmax", "absmax-channel", "mse", "gptq"]


def _relative(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError(f"{path!r} is not a path inside the directory")
    return path


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublicSource(_Record):
    """The public checkpoint: the name of its directory and the sha256 of its weights."""

    name: str
    sha256: Sha256


class Quantiser(_Record):
    """How the weights were rounded.

    Attributes:
        method: ``absmax-channel`` finds one scale per row and repeats it for every group.
        bits: Levels used are those of this many bits; the files are INT4 all the same.
        group_size: Weights per scale as stored.
        seed: Chose the calibration windows.
        versions: The packages, and the CPU features, that GPTQ's linear algebra depends on.
    """

    method: Method
    bits: Literal[2, 3, 4]
    group_size: int = Field(gt=0)
    seed: int
    versions: dict[str, str]


class Calibration(_Record):
    """The text whose activations weighted the rounding: its sha256 and how it was cut."""

    sha256: Sha256
    windows: int = Field(gt=0)
    window: int = Field(gt=0)


class BaseManifest(_Record):
    """The content of ``libortho.json``.

    Attributes:
        base_id: What :func:`base_id` gives for ``files``.
        files: ``{relative path: sha256}`` of every file of the base but this one.
        calibration: None where the method needs none.
        layers: ``{layer: (out_features, in_features)}`` of the INT4 layers.
        experts: ``{matrix on disk: (out_features, in_features)}`` of INT4 expert matrices, which
            are stacked and computed with densely: no stream acts on them.
        skipped: ``{layer: reason}`` of the linear layers that stay as they were.
        relative_error: ``{layer: ‖W − Ŵ‖ / ‖W‖}`` (Frobenius), to four digits.
    """

    format_version: Literal[1] = 1
    base_id: Sha256
    public: PublicSource
    quantiser: Quantiser
    calibration: Calibration | None
    layers: dict[str, tuple[int, int]]
    experts: dict[str, tuple[int, int]] = {}
    skipped: dict[str, str]
    relative_error: dict[str, float]
    files: dict[Annotated[str, AfterValidator(_relative)], Sha256]


def base_id(files: Mapping[str, str]) -> str:
    """sha256 over the sorted lines ``relative path`` + space + ``sha256`` + newline."""
    lines = "".join(f"{path} {files[path]}\n" for path in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
