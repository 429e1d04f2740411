"""What an audit has found so far, kept on disk attack by attack, so that nothing is lost.

FOLDER/TARGET-<digest>.partial/run.json          what was asked, of what, by which code
                               relearn.0.json    one attack's outcome in one state, and its seconds

The digest is that of run.json: the same audit finds its parts again, any other one does not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from libortho.errors import FormatError, NumericsError
from libortho.privacy.attacks.subject import Figure, Outcome
from libortho.privacy.statistics import TestResult
from libortho.records import write_atomic

SUFFIX = ".partial"
_DIGEST = 16


@dataclass(frozen=True)
class Done:
    """One attack in one state, carried out.

    Attributes:
        seconds: that it took.
    """

    outcome: Outcome
    seconds: float


class Parts:
    """The outcomes of one audit, in a folder of their own.

    Args:
        folder: where that folder lies; None keeps nothing.
        name: of the target.
        run: JSON values that tell this audit from any other.
    """

    def __init__(self, folder: Path | None, name: str, run: Mapping[str, Any]) -> None:
        text = json.dumps(run, indent=2, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
        self.path = None if folder is None else folder / f"{name}-{digest}{SUFFIX}"
        if self.path is not None and not (self.path / "run.json").exists():
            write_atomic(self.path / "run.json", text)

    def read(self, attack: str, state: int) -> Done | None:
        """The outcome of an attack in the state of that index, if it is there.

        Raises:
            FormatError: the file was altered.
        """
        file = self._file(attack, state)
        if file is None or not file.exists():
            return None
        try:
            found = json.loads(file.read_text("utf-8"))
            outcome = Outcome(
                {key: Figure(**values) for key, values in found["figures"].items()},
                found["raw"],
                tuple(TestResult(**values) for values in found["tests"]),
                found["extracted"],
            )
            return Done(outcome, float(found["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{file} is not an outcome that an audit wrote ({error}); delete it, and the "
                "attack is run again"
            ) from error

    def write(self, attack: str, state: int, done: Done) -> None:
        """Keep an outcome: readers see all of the file or none.

        Raises:
            NumericsError: it holds numbers that are not finite.
        """
        file = self._file(attack, state)
        if file is None:
            return
        found = {"seconds": done.seconds, **asdict(done.outcome)}
        try:
            text = json.dumps(found, allow_nan=False, ensure_ascii=False)
        except ValueError as error:
            raise NumericsError(
                f"{attack}: the outcome holds numbers that are not finite"
            ) from error
        write_atomic(file, text)

    def discard(self) -> None:
        """Delete the folder: the record holds everything now."""
        if self.path is not None:
            shutil.rmtree(self.path)

    def _file(self, attack: str, state: int) -> Path | None:
        return None if self.path is None else self.path / f"{attack}.{state}.json"
