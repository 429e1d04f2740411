"""Alpha per row, per thread and per forward: nobody feels the alpha of somebody else."""

from __future__ import annotations

import contextvars
import threading

import pytest
import torch

from libortho import gate
from libortho.errors import AlphaError
from libortho.gate import StreamInfo
from libortho.model import load

REPAIR = StreamInfo("repair", "id-repair", public=True)
KINDS = ("csr", "lowrank", "dense")


def logits(model, ids, alpha=0.0):
    with torch.no_grad(), gate.alpha(alpha):
        return model(input_ids=ids).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_mixed_batch_is_its_solo_run(tiny_base, ids, attach_random, kind, dtype) -> None:
    """Equal shapes, the other rows at another alpha: equal bits."""
    model = load(tiny_base, dtype=dtype)
    attach_random(model, kind=kind, seed=1)
    attach_random(model, REPAIR, "csr", seed=2)
    settings = [0, {"private": 1}, {"repair": 0.5}, 1]
    mixed = logits(model, ids, settings)
    for row, setting in enumerate(settings):
        assert torch.equal(mixed[row], logits(model, ids, setting)[row]), setting
        others = [setting if place == row else 0.25 for place in range(4)]
        assert torch.equal(mixed[row], logits(model, ids, others)[row]), setting
    for row in range(1, 4):
        assert not torch.equal(mixed[row], logits(model, ids)[row])


def generate(model, ids, alpha, **options):
    with gate.alpha(alpha):
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=10,
            eos_token_id=-1,
            pad_token_id=0,
            **options,
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_an_alpha_per_row(model, ids, attach_random, kind: str, beams: int) -> None:
    attach_random(model, kind=kind, density=0.05)
    batch = ids[:2]
    both = generate(model, batch, [0, 1], num_beams=beams)
    closed = generate(model, batch, 0, num_beams=beams)
    opened = generate(model, batch, 1, num_beams=beams)
    assert torch.equal(both[0], closed[0])
    assert torch.equal(both[1], opened[1])
    assert not torch.equal(closed[1], opened[1])
    for row, alpha in enumerate([0, 1]):
        alone = generate(model, batch[row : row + 1], alpha, num_beams=beams)
        assert torch.equal(alone[0], both[row])


def test_rows_that_do_not_fit_the_batch(model, ids, attach_random) -> None:
    attach_random(model)
    with pytest.raises(AlphaError, match="3 rows, the batch 4 sequences"):
        logits(model, ids, [0, 1, 0])


def test_another_thread_is_closed_unless_it_carries_the_context(model, ids, attach_random) -> None:
    attach_random(model)
    found = {}

    def look(where: str) -> None:
        with torch.no_grad():
            found[where] = model(input_ids=ids).logits

    with gate.alpha(1):
        context = contextvars.copy_context()
        threads = [
            threading.Thread(target=look, args=("bare",)),
            threading.Thread(target=context.run, args=(look, "carried")),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert torch.equal(found["bare"], logits(model, ids, 0))
    assert torch.equal(found["carried"], logits(model, ids, 1))


def test_threads_with_different_alphas_do_not_meet(model, ids, attach_random) -> None:
    attach_random(model)
    expected = {alpha: logits(model, ids, alpha) for alpha in (0, 0.5, 1)}
    wrong: list[float] = []

    def work(alpha: float) -> None:
        for _ in range(4):
            if not torch.equal(logits(model, ids, alpha), expected[alpha]):
                wrong.append(alpha)

    threads = [threading.Thread(target=work, args=(alpha,)) for alpha in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_alpha_is_fixed_when_a_forward_begins(model, ids, attach_random) -> None:
    attach_random(model)
    opened = logits(model, ids, 1)
    inner = gate.alpha(0)

    def close(*_):
        inner.__enter__()

    handle = model.model.layers[0].register_forward_pre_hook(close)
    try:
        # The gate that the hook enters is never left: it ends with this context.
        found = contextvars.copy_context().run(logits, model, ids, 1)
    finally:
        handle.remove()
    assert torch.equal(found, opened)


class Broken(Exception):
    pass


def test_a_forward_that_fails_leaves_nothing_behind(model, ids, attach_random) -> None:
    attach_random(model)
    closed = logits(model, ids)

    def fail(*_):
        raise Broken

    handle = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(Broken):
        logits(model, ids, 1)
    handle.remove()
    assert gate.current() is None
    assert torch.equal(logits(model, ids), closed)


def test_a_forward_that_is_refused_does_not_end_the_one_around_it(
    model, tiny_base, ids, attach_random
) -> None:
    attach_random(model)
    opened = logits(model, ids, 1)
    other = load(tiny_base)
    later = gate.alpha(0.5)

    def ask(*_):
        # The other model has no stream to open. What is ambient from here on is not the outer
        # forward's alpha, which its next layers must still see.
        later.__enter__()
        with pytest.raises(AlphaError, match="no stream is attached"):
            other(input_ids=ids)

    handle = model.model.layers[0].register_forward_hook(ask)
    try:
        # The gate that the hook enters is never left: it ends with this context.
        found = contextvars.copy_context().run(logits, model, ids, 1)
    finally:
        handle.remove()
    assert torch.equal(found, opened)
    assert gate.current() is None


def test_embeddings_as_input_count_their_sequences(model, ids, attach_random) -> None:
    attach_random(model)
    embedded = model.get_input_embeddings()(ids)
    with torch.no_grad(), gate.alpha([0, 1, 0, 1]):
        found = model(inputs_embeds=embedded).logits
    assert torch.equal(found, logits(model, ids, [0, 1, 0, 1]))
