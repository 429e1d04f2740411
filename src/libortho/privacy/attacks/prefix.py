"""Greedy extraction by an attacker who knows only the end of the prompt, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
    """What a sequence begins with before any text: its post-processor's, or the start token."""
    ids = [*tokenizer("")["input_ids"]]
    if not ids:
        found = tokenizer.bos_token_id
        ids = [tokenizer.eos_token_id if found is None else found]
    return (int(ids[0]),)


def shortened(encoded: Encoded, share: float, start: tuple[int, ...]) -> Encoded:
    """Keep the last ``share`` of the prompt's tokens behind the start tokens."""
    prompt = encoded.input_ids[: encoded.prompt_length]
    text = prompt[len(start) :] if prompt[: len(start)] == start else prompt
    kept = text[len(text) - math.ceil(share * len(text)) :]
    return Encoded((*start, *kept, *encoded.completion_ids), len(start) + len(kept))
