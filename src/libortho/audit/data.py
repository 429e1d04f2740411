"""What an audit asks for: rows a model was trained on, and rows of their law that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from libortho.errors import ConfigError
from libortho.privacy.canaries import as_canaries, kind_of, make_controls
from libortho.privacy.private_set import Example, encode_jsonl, read_jsonl

_SHOWN = 10


@dataclass(frozen=True)
class Data:
    """Members and controls.

    Attributes:
        kind: of canaries, where both are our own.
        members_sha256: of the members' file.
        controls_sha256: of the controls' file, or of the JSONL of those that were drawn.
        drawn: the controls were drawn here and come from no file.
    """

    members: Sequence[Example]
    controls: Sequence[Example]
    kind: str | None
    members_sha256: str
    controls_sha256: str
    drawn: bool

    @property
    def halves(self) -> tuple[Sequence[Example], Sequence[Example]]:
        """Members, controls."""
        return self.members, self.controls


def read_data(
    members: str | Path, controls: str | Path | None = None, limit: int | None = None
) -> Data:
    """Read members and controls; controls of our own canaries are drawn where none are given.

    Args:
        members: JSONL that the model was trained on.
        controls: JSONL of the same law that it never saw.
        limit: how many of each to take, from the top.

    Raises:
        ConfigError: there are no controls and none can be drawn, or rows stand in both files.
        FormatError: a file is not JSONL of private data.
    """
    ours = read_jsonl(members)
    kind = kind_of(ours.examples)
    if controls is None:
        if kind is None:
            raise ConfigError(
                f"{members}: no controls. Whether a model knows these rows can only be told from "
                "rows of the same kind that it never saw, and these are not libortho's canaries, "
                "whose law is known. Give --controls FILE: hold rows back before training, with\n"
                f"    shuf {members} -o shuffled.jsonl && split -n l/2 shuffled.jsonl half-\n"
                "or mix canaries into the data before training, with\n"
                "    libortho canaries 200 -o DIR"
            )
        seed = int(ours.sha256[:8], 16)
        known = as_canaries(ours.examples, kind)
        fresh = make_controls(known, len(known), seed, kind)
        digest = sha256(encode_jsonl(map(asdict, fresh))).hexdigest()
        return Data(ours.examples[:limit], fresh[:limit], kind, ours.sha256, digest, True)
    theirs = read_jsonl(controls)
    shared = {(one.prompt, one.completion) for one in ours.examples} & {
        (one.prompt, one.completion) for one in theirs.examples
    }
    if shared:
        listed = "\n  ".join(f"{p!r} {c!r}" for p, c in sorted(shared)[:_SHOWN])
        raise ConfigError(
            f"{len(shared)} row(s) stand in both {members} and {controls}; a control must never "
            f"have been trained on:\n  {listed}"
        )
    both = kind if kind_of(theirs.examples) == kind else None
    return Data(
        ours.examples[:limit],
        theirs.examples[:limit],
        both,
        ours.sha256,
        theirs.sha256,
        False,
    )
