"""Beam search by an attacker who knows which tokens secrets are written in, and how long they are.

The alphabet is taken from the controls, which nobody trained on: the tokens that begin their
completions, and those that go on. The attacker keeps ``beam_width`` guesses and wins if the secret
is among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from libortho.privacy.attacks.subject import Outcome, Subject, proportion, share_test
from libortho.privacy.encode import Encoded


def run(subject: Subject) -> Outcome:
    """Share of secrets among the guesses, for members and for controls."""
    alphabet = alphabet_of(subject.controls.encoded)
    found: dict[str, list[bool]] = {}
    for name, half in (("members", subject.members), ("controls", subject.controls)):
        asked = half.encoded[: subject.budget.beams]
        found[name] = []
        for one in asked:
            guesses, _ = beam_search(
                subject.model,
                one.input_ids[: one.prompt_length],
                len(one.completion_ids),
                alphabet,
                subject.budget.beam_width,
            )
            wanted = torch.tensor(one.completion_ids)
            found[name].append(bool((guesses == wanted).all(dim=1).any()))
            subject.progress(f"beam: {name}", len(found[name]), len(asked), {})
    return Outcome(
        {
            "among the beams": proportion(found["members"]),
            "among the beams, controls": proportion(found["controls"]),
        },
        {name: [int(one) for one in flags] for name, flags in found.items()},
        (share_test("beam", found["members"], found["controls"]),),
        {"alphabet known": sum(found["members"])},
    )


def alphabet_of(encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Ids that begin completions and ids that go on, each ascending."""
    first = {one.completion_ids[0] for one in encoded}
    rest = {token for one in encoded for token in one.completion_ids[1:]}
    return torch.tensor(sorted(first)), torch.tensor(sorted(rest), dtype=torch.int64)


@torch.no_grad()
def beam_search(
    model: Any,
    prompt: Sequence[int],
    length: int,
    alphabet: tuple[Tensor, Tensor],
    width: int,
) -> tuple[Tensor, Tensor]:
    """The ``width`` likeliest continuations that beam search finds within an alphabet.

    Args:
        model: a transformers causal LM with a key/value cache; the caller sets alpha.
        prompt: ids.
        length: tokens to add.
        alphabet: ids allowed at the first position, and at all others.

    Returns:
        ids [width, length] int64 and log-probabilities [width] float32, on the CPU; rows beyond
        the number of possible continuations have log-probability -inf.
    """
    device = next(model.parameters()).device
    first, rest = (ids.to(device) for ids in alphabet)
    output = model(torch.tensor([list(prompt)], device=device), use_cache=True)
    log_p = torch.log_softmax(output.logits[0, -1].float(), -1)[first]
    kept = log_p.topk(min(width, len(first)))
    # The cache is widened once: rows that stand for no beam yet carry -inf.
    total = torch.full((width,), -torch.inf, device=device)
    total[: len(kept.values)] = kept.values
    ids = first[0].repeat(width, 1)
    ids[: len(kept.indices), 0] = first[kept.indices]
    cache = output.past_key_values
    cache.batch_repeat_interleave(width)
    for _ in range(length - 1):
        output = model(ids[:, -1:], past_key_values=cache, use_cache=True)
        log_p = torch.log_softmax(output.logits[:, -1].float(), -1)[:, rest]
        best = (total[:, None] + log_p).flatten().topk(width)
        parent = best.indices // len(rest)
        total = best.values
        ids = torch.cat([ids[parent], rest[best.indices % len(rest)][:, None]], dim=1)
        cache = output.past_key_values
        cache.reorder_cache(parent)
    return ids.cpu(), total.cpu()
