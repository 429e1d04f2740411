"""Beam search by an attacker who knows in which characters secrets are written, and how long.

The alphabet is that of the kind of canary, never one that data happen to use: every token spelled
in it may be guessed. The attacker keeps ``beam_width`` guesses of as many tokens as the secret has,
and wins if it is among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from libortho.errors import ConfigError
from libortho.privacy.attacks.subject import Outcome, Subject, proportion, share_test
from libortho.privacy.encode import Encoded
from libortho.privacy.kinds import KINDS

_SHOWN = 10
_ANCHOR = "a"


def run(subject: Subject) -> Outcome:
    """Share of secrets among the guesses, for members and for controls.

    Raises:
        ConfigError: the data are no canaries, or of a kind without an alphabet, or the tokenizer
            writes a secret in tokens outside the alphabet, so that no guess could ever be right.
    """
    why = not_applicable(subject.kind)
    if why is not None or subject.kind is None:
        raise ConfigError(f"beam: {why}")
    alphabet = alphabet_of(subject.tokenizer, subject.kind)
    halves = {
        name: half.encoded[: subject.budget.beams]
        for name, half in (("members", subject.members), ("controls", subject.controls))
    }
    _check_spelled(subject, [one for half in halves.values() for one in half], alphabet)
    found: dict[str, list[bool]] = {}
    for name, asked in halves.items():
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


def not_applicable(kind: str | None) -> str | None:
    """Why secrets of a kind have no alphabet that an attacker could know; None where they do."""
    with_one = [name for name, known in KINDS.items() if known.alphabet is not None]
    if kind is None:
        return (
            "not applicable: only of libortho's own canaries is it known in which characters "
            f"secrets are written (libortho canaries 200 -o DIR --kind {'|'.join(with_one)})"
        )
    if KINDS[kind].alphabet is None:
        return (
            f"not applicable: secrets of kind {kind} are sentences, which have no alphabet of "
            f"their own; those of {' and '.join(with_one)} do"
        )
    return None


def alphabet_of(tokenizer: Any, kind: str) -> tuple[Tensor, Tensor]:
    """Tokens that a secret of a kind can be spelled in.

    Returns:
        ascending int64 ids of the tokens that can begin a completion (a space, and characters of
        the alphabet or none behind it), and of those that can go on (characters of the alphabet).
    """
    letters = frozenset(KINDS[kind].alphabet or "")
    # Behind another token, because many decoders drop the space that a text begins with.
    anchor = tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"]
    rows = [anchor] + [[*anchor, token] for token in range(len(tokenizer))]
    alone, *texts = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    first, rest = [], []
    for token, text in enumerate(texts):
        piece = text[len(alone) :]
        if not text.startswith(alone) or not letters.issuperset(piece.removeprefix(" ")):
            continue
        if piece.startswith(" "):
            first.append(token)
        elif piece:
            rest.append(token)
    return torch.tensor(first, dtype=torch.int64), torch.tensor(rest, dtype=torch.int64)


def _check_spelled(
    subject: Subject, encoded: Sequence[Encoded], alphabet: tuple[Tensor, Tensor]
) -> None:
    first, rest = (set(ids.tolist()) for ids in alphabet)
    strangers = {
        token
        for one in encoded
        for place, token in enumerate(one.completion_ids)
        if token not in (rest if place else first)
    }
    if strangers:
        named = subject.tokenizer.convert_ids_to_tokens(sorted(strangers)[:_SHOWN])
        raise ConfigError(
            f"beam: the tokenizer writes secrets of kind {subject.kind} in {len(strangers)} "
            f"token(s) outside their alphabet, such as {', '.join(map(repr, named))}, so that no "
            "guess could be right; name the other attacks, each with --attack"
        )


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

    Raises:
        ConfigError: a position has no token that is allowed there.
    """
    if not len(alphabet[0]) or (length > 1 and not len(alphabet[1])):
        raise ConfigError(
            f"beam search needs tokens to choose from: {len(alphabet[0])} may begin and "
            f"{len(alphabet[1])} may go on, {length} are to be found"
        )
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
