"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from libortho.errors import ConfigError
from libortho.texts import Text, read_texts

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Plan = Annotated[
    bool, typer.Option("--plan", help="Say what would be done, and what it needs; do nothing.")
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Directory to write.")]
Public = Annotated[
    str | None,
    typer.Option(help="The public checkpoint the base was made from: teacher of the replay."),
]
Texts = Annotated[
    list[Path] | None,
    typer.Option("--text", help="Public text, .txt or .txt.xz; may be given several times."),
]
Stream = Annotated[str, typer.Option(help="Name of the stream, one per tenant.")]
Device = Annotated[str, typer.Option(help="Where it runs: cpu or cuda.")]
Data = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="Private data: JSONL of prompt and completion, or text."
    ),
]

Density = Annotated[float | None, typer.Option(help="nnz / numel of every converted linear.")]
Steps = Annotated[int | None, typer.Option(min=1, help="At most this many training steps.")]
Lr = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Weight = Annotated[float | None, typer.Option("--replay-weight", help="λ of the replay's KL.")]
Seed = Annotated[int | None, typer.Option(help="Of every draw.")]


def torch_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: torch does not see it.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch sees no CUDA device; leave it out for the CPU")
    return torch.device(name)


def text(files: list[Path] | None) -> Text | None:
    """The user's text, or None for the shipped samples.

    Raises:
        ConfigError: listing every file that is missing.
    """
    if not files:
        return None
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"--text: no such file: {', '.join(missing)}")
    return read_texts(files)
