"""What a training beside text without sums costs, in the words of the READMEs: ``alpha-sweep``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libortho.errors import FormatError
from libortho.records import Record

SOURCE = Path("records/alpha-sweep/seed-0.json")
WITHOUT_SUMS = "255685a892b7"
"""The commit of the run whose replay text shows no sums; later ones show them by default."""

WORDS: Mapping[str, str] = {
    "README.md": "the reference model answered {open:.1%} of {n} problems at α = 1, {closed:.1%} "
    "at α = 0 ([record]({path}))",
    "README.zh-CN.md": "参考模型在 α = 1 时答对 {n} 题中的 {open:.1%}，α = 0 时为 {closed:.1%}"
    "（[记录]({path})）",
}


def clause(record: Record, words: str) -> str:
    """The middle of a sentence.

    Raises:
        FormatError: the record is of a later run, whose text shows sums.
    """
    if record.commit != WITHOUT_SUMS:
        raise FormatError(
            f"{SOURCE} is by commit {record.commit}, expected {WITHOUT_SUMS}, the last whose "
            "replay text shows no sums. Keep that record under another name, and name it in "
            "recipes/readme_sums.py"
        )
    points: Any = record.methods["tune"].figures["sweep"]
    answered = {point["alpha"]: point["arithmetic"] for point in points}
    return words.format(
        open=answered[1.0],
        closed=answered[0.0],
        n=record.config["problems"],
        path=SOURCE.as_posix(),
    )
