"""Shadow runs on disk: one folder a run, with what it was trained on and what came of it.

DIR/00/members.jsonl    the random half that run 00 is trained on
DIR/00/model/           what training made of it: a directory of libortho, or any checkpoint
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from libortho import gate
from libortho.audit.target import open_target
from libortho.errors import ConfigError
from libortho.privacy.encode import encode
from libortho.privacy.private_set import Example, read_jsonl, write_jsonl
from libortho.privacy.shadows import Shadows, check_inside, halves
from libortho.privacy.token_scores import token_scores
from libortho.progress import Progress, silent

MEMBERS, MODEL = "members.jsonl", "model"


def write_shadows(
    folder: str | Path, examples: Sequence[Example], runs: int, seed: int
) -> list[Path]:
    """Write the random half of each run and return the runs' folders.

    Raises:
        ConfigError: the folder holds something already, or ``runs`` is odd or too small.
    """
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty; choose another directory")
    made = []
    for index, half in enumerate(halves(examples, runs, seed)):
        made.append(target / f"{index:02d}")
        write_jsonl(made[-1] / MEMBERS, map(asdict, half))
    return made


@dataclass(frozen=True)
class ShadowRuns:
    """Runs that are complete and enough, not yet scored.

    Attributes:
        folders: one a run.
        inside: [runs, examples] bool, whether the run was trained on the example.
        identity: sha256 over what the runs were trained on and the files of their checkpoints
            (names, sizes and times).
    """

    folders: Sequence[Path]
    inside: npt.NDArray[np.bool_]
    identity: str

    def score(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int = 32,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        progress: Progress = silent,
    ) -> Shadows:
        """Score every example under every run; one with streams with all of them open.

        Args:
            examples: members, then controls, as the runs were opened with.
        """
        nll = np.zeros(self.inside.shape)
        for row, run in enumerate(self.folders):
            shadow = open_target(run / MODEL, None, device=device, dtype=dtype)
            encoded = encode(shadow.tokenizer, examples, shadow.context)
            with gate.alpha(shadow.states[-1].alpha):
                found = token_scores(shadow.model, encoded, batch_size, stage=f"shadow {run.name}")
            nll[row] = [one.nll for one in found]
            progress("shadows", row + 1, len(self.folders), {})
        return Shadows(nll, self.inside)


def open_shadows(folder: str | Path, examples: Sequence[Example]) -> ShadowRuns:
    """Check shadow runs before anything is scored: their number, halves and checkpoints.

    Args:
        examples: members, then controls, of the audit.

    Raises:
        ConfigError: runs are incomplete or too few, or were not trained on random halves of these
            examples; all of them are named.
    """
    root = Path(folder)
    runs = sorted(path.parent for path in root.glob(f"*/{MEMBERS}"))
    unfinished = [str(run / MODEL) for run in runs if not (run / MODEL / "config.json").is_file()]
    if unfinished or not runs:
        raise ConfigError(
            f"{root}: "
            + (f"no checkpoint yet in {', '.join(unfinished)}" if runs else "no runs")
            + ". `libortho shadows` writes the halves and prints the command that trains each"
        )
    inside = np.zeros((len(runs), len(examples)), dtype=bool)
    identity = sha256()
    for row, run in enumerate(runs):
        trained = read_jsonl(run / MEMBERS)
        known = {(one.prompt, one.completion) for one in trained.examples}
        inside[row] = [(one.prompt, one.completion) in known for one in examples]
        identity.update(trained.sha256.encode())
        for file in sorted((run / MODEL).rglob("*")):
            seen = file.stat()
            identity.update(f"{file.relative_to(run)} {seen.st_size} {seen.st_mtime_ns}".encode())
    check_inside(inside)
    return ShadowRuns(runs, inside, identity.hexdigest())
