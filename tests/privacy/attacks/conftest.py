"""A tiny model that has memorised twelve canaries, and one that has not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from libortho.privacy.associates import associates, styles
from libortho.privacy.attacks.subject import Budget, Half, Subject
from libortho.privacy.canaries import CanarySet, make_canaries
from libortho.privacy.encode import encode
from libortho.privacy.token_scores import token_scores

MakeSubject = Callable[..., Subject]
SMALL = Budget(candidates=40, sampled=4, beam_width=8, beams=4, relearn_steps=25, batch_size=16)


@pytest.fixture(scope="session")
def canaries() -> CanarySet:
    return make_canaries(12, 0)


@pytest.fixture(scope="session")
def unseen_model(tiny_checkpoint) -> Any:
    """Treat it as read-only."""
    model = LlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def memorised_model(unseen_model, tiny_tokenizer, canaries, memorise) -> Any:
    """The same model after it learned the members by heart; treat it as read-only."""
    return memorise(copy.deepcopy(unseen_model), encode(tiny_tokenizer, canaries.members))


@pytest.fixture(scope="session")
def associating_model(unseen_model, tiny_tokenizer, canaries, memorise) -> Any:
    """The same model after it learned what six members' associates say, and not the members."""
    asked = [
        one
        for style in styles(canaries.kind)
        for one in associates(canaries.members[:6], canaries.kind, style)
    ]
    return memorise(copy.deepcopy(unseen_model), encode(tiny_tokenizer, asked), loss=0.05)


@pytest.fixture(scope="session")
def make_subject(tiny_tokenizer, canaries) -> MakeSubject:
    """``make_subject(model, canaries=…, **fields)``: a subject with fresh scores."""

    def make(model: Any, drawn: CanarySet = canaries, **fields: Any) -> Subject:
        halves = []
        for half in (drawn.members, drawn.controls):
            encoded = encode(tiny_tokenizer, half)
            halves.append(Half(half, encoded, token_scores(model, encoded)))
        return Subject(
            model, tiny_tokenizer, *halves, **{"kind": drawn.kind, "budget": SMALL} | fields
        )

    return make
