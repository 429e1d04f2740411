"""Membership by loss over compressed size (Carlini et al., arXiv 2012.07805)."""

from __future__ import annotations

import zlib

from libortho.privacy.attacks.subject import Half, Outcome, Subject, membership


def run(subject: Subject) -> Outcome:
    """Score: NLL of the completion over the bytes that zlib makes of it."""
    return membership("zlib", _scores(subject.members), _scores(subject.controls), subject.seed)


def _scores(half: Half) -> list[float]:
    return [
        one.nll / len(zlib.compress(example.completion.encode()))
        for one, example in zip(half.tokens, half.examples, strict=True)
    ]
