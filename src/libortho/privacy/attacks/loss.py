"""Membership by loss (Yeom et al., arXiv 1709.01604): members cost less."""

from __future__ import annotations

from libortho.privacy.attacks.subject import Outcome, Subject, membership


def run(subject: Subject) -> Outcome:
    """Score: NLL of the completion, in nats."""
    return membership("loss", subject.members.nll, subject.controls.nll, subject.seed)
