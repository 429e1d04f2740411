"""Membership against a reference model that never saw the data (Carlini et al., 2012.07805)."""

from __future__ import annotations

from libortho.errors import ConfigError
from libortho.privacy.attacks.subject import Outcome, Subject, membership


def run(subject: Subject) -> Outcome:
    """Score: NLL under the model minus NLL under the reference, in nats.

    Raises:
        ConfigError: without a reference.
    """
    reference = subject.reference
    if reference is None:
        raise ConfigError("the reference attack needs a model that never saw the data")
    members = [a - b for a, b in zip(subject.members.nll, reference.members, strict=True)]
    controls = [a - b for a, b in zip(subject.controls.nll, reference.controls, strict=True)]
    return membership("reference", members, controls, subject.seed)
