"""Greedy extraction by an attacker who knows only the end of the prompt, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from libortho.errors import ConfigError
from libortho.privacy.attacks.subject import Outcome, Subject, proportion
from libortho.privacy.encode import Encoded
from libortho.privacy.token_scores import token_scores

SHARES: Mapping[str, float] = {"half": 0.5, "quarter": 0.25, "nothing": 0.0}


def run(subject: Subject) -> Outcome:
    """Recited from the last half of the prompt, from the last quarter, from its start token."""
    start = start_ids(subject.tokenizer)
    figures, raw, extracted = {}, {}, {}
    for name, share in SHARES.items():
        asked = [shortened(one, share, start) for one in subject.members.encoded]
        found = token_scores(
            subject.model,
            asked,
            subject.budget.batch_size,
            stage=f"prefix: {name}",
            progress=subject.progress,
        )
        exact = [one.exact for one in found]
        figures[f"recited from {name}"] = proportion(exact)
        raw[name] = [int(one) for one in exact]
        extracted[f"{name} of the prompt"] = sum(exact)
    return Outcome(figures, raw, (), extracted)


def start_ids(tokenizer: Any) -> tuple[int, ...]:
    """What a sequence begins with before any text: its post-processor's, or the start token.

    Raises:
        ConfigError: the tokenizer has neither, nor an end token that could stand for it.
    """
    known = [*tokenizer("")["input_ids"], tokenizer.bos_token_id, tokenizer.eos_token_id]
    found = next((token for token in known if token is not None), None)
    if found is None:
        raise ConfigError(
            f"{type(tokenizer).__name__} has no start or end token, so nothing can be asked "
            "without a prompt; name the other attacks, each with --attack"
        )
    return (int(found),)


def shortened(encoded: Encoded, share: float, start: tuple[int, ...]) -> Encoded:
    """Keep the last ``share`` of the prompt's tokens behind the start tokens."""
    prompt = encoded.input_ids[: encoded.prompt_length]
    text = prompt[len(start) :] if prompt[: len(start)] == start else prompt
    kept = text[len(text) - math.ceil(share * len(text)) :]
    return Encoded((*start, *kept, *encoded.completion_ids), len(start) + len(kept))
