"""``libortho verify``: every byte is what the manifests say, and the base follows from public
inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from libortho.checkpoint import Checkpoint
from libortho.errors import LibOrthoError
from libortho.progress import Progress, silent
from libortho.quantize import quantize, versions_here
from libortho.streams.base import BaseStream
from libortho.streams.ortho import MANIFEST, STREAM_FOLDER, OrthoStream
from libortho.texts import read_texts


@dataclass
class Verified:
    """What was found.

    Attributes:
        problems: all of them, in words; empty when everything is whole.
        rebuilt: ``identical``, ``different``, ``not reproducible here`` or None where it was not
            asked for.
        environment: what differs between the recorded environment and this one.
    """

    problems: list[str] = field(default_factory=list)
    rebuilt: str | None = None
    environment: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Nothing is wrong (a base that cannot be rebuilt in this environment is no fault)."""
        return not self.problems

    @property
    def status(self) -> str:
        """One line."""
        text = "whole" if self.whole else f"{len(self.problems)} problem(s)"
        if self.rebuilt:
            text += f"; rebuilt from the public checkpoint: {self.rebuilt}"
        if self.environment:
            text += f" ({'; '.join(self.environment)})"
        return text

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"whole": self.whole, **asdict(self)}


def verify(
    path: str | Path,
    *,
    rebuild: str | Path | None = None,
    text_files: Sequence[Path] | None = None,
    progress: Progress = silent,
) -> Verified:
    """Check a base directory and every stream beside it.

    Args:
        path: the base directory.
        rebuild: the public checkpoint; the base is built from it again and compared file by file.
        text_files: the calibration text, where it was not the shipped one.
    """
    base = BaseStream.open(path)
    found = Verified(base.verify())
    for file in sorted((base.path / STREAM_FOLDER).glob(f"*/{MANIFEST}")):
        try:
            stream = OrthoStream.open(file.parent)
            stream.check_pair(base.id, base.stream_shapes())
            found.problems += stream.verify()
        except LibOrthoError as error:
            found.problems.append(str(error))
    if rebuild is not None:
        _rebuild(base, rebuild, text_files, found, progress)
    return found


def _rebuild(
    base: BaseStream,
    public: str | Path,
    text_files: Sequence[Path] | None,
    found: Verified,
    progress: Progress,
) -> None:
    manifest = base.manifest
    if Checkpoint(public).sha256() != manifest.public.sha256:
        found.rebuilt = "different"
        found.problems.append(f"{public}: not the weights that this base was made from")
        return
    calibration = manifest.calibration
    windows, window = (calibration.windows, calibration.window) if calibration else (1, None)
    with tempfile.TemporaryDirectory(prefix="libortho-rebuild-") as folder:
        again = quantize(
            public,
            Path(folder) / "base",
            method=manifest.quantiser.method,
            bits=manifest.quantiser.bits,
            group_size=manifest.quantiser.group_size,
            seed=manifest.quantiser.seed,
            text=read_texts(text_files) if text_files else None,
            windows=windows,
            window=window,
            progress=progress,
        ).manifest
    if again.calibration != calibration:
        found.rebuilt = "different"
        found.problems.append("the calibration text is another one; give it with --text")
        return
    ours, theirs = manifest.quantiser.versions, versions_here()
    found.environment = [
        f"{name} {ours.get(name)} there, {theirs.get(name)} here"
        for name in sorted(set(ours) | set(theirs))
        if ours.get(name) != theirs.get(name)
    ]
    unlike = sorted(
        name
        for name in set(again.files) | set(manifest.files)
        if again.files.get(name) != manifest.files.get(name)
    )
    if not unlike:
        found.rebuilt = "identical"
    elif manifest.quantiser.method == "gptq" and found.environment:
        found.rebuilt = "not reproducible here"
    else:
        found.rebuilt = "different"
        found.problems += [f"{name}: a rebuild gives other bytes" for name in unlike]
