"""A cache filled under one alpha never serves another: it would replay the streams' state."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from transformers.cache_utils import LinearAttentionLayer

from libortho import gate
from libortho.errors import AlphaError, UnsupportedLayer
from libortho.gate import StreamInfo
from libortho.model import attach_layers, detach, load
from libortho.quantize import quantize

OTHER = StreamInfo("other", "id-other", public=False)
REPLAY = "begin with an empty cache"


def forward(model, ids, alpha, cache=None, **options):
    with torch.no_grad(), gate.alpha(alpha):
        return model(input_ids=ids, past_key_values=cache, use_cache=True, **options)


@pytest.fixture
def opened(model, attach_random):
    attach_random(model)
    return model


@pytest.mark.parametrize("ours", [True, False], ids=["passed in", "made by the forward"])
@pytest.mark.parametrize(("filled", "asked"), [(1, 0), (0, 1), (1, 0.5), ([0, 1], [1, 0])])
def test_another_alpha_is_refused(opened, ids, ours: bool, filled, asked) -> None:
    given = DynamicCache() if ours else None
    cache = forward(opened, ids[:2, :8], filled, given).past_key_values
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids[:2, 8:], asked, cache)


@pytest.mark.parametrize("alpha", [0, 1, [0, 1]])
def test_the_same_alpha_passes_and_continues(opened, ids, alpha) -> None:
    whole = forward(opened, ids[:2], alpha).logits
    cache = forward(opened, ids[:2, :8], alpha).past_key_values
    rest = forward(opened, ids[:2, 8:], alpha, cache).logits
    # Fewer rows a product, hence sums in another order: 128 terms, a few layers.
    torch.testing.assert_close(rest, whole[:, 8:], rtol=1e-4, atol=1e-4)


def test_a_value_that_rounds_to_the_same_alpha_is_the_same(opened, ids) -> None:
    cache = forward(opened, ids[:, :8], 0.5).past_key_values
    forward(opened, ids[:, 8:], 0.5 + 1 / 1024, cache)


def test_a_positional_cache_is_looked_at_too(opened, ids) -> None:
    cache = forward(opened, ids[:, :8], 1).past_key_values
    with torch.no_grad(), pytest.raises(AlphaError, match=REPLAY):
        opened(ids[:, 8:], None, None, cache)


def test_other_streams_are_refused(opened, ids, make_layers) -> None:
    cache = forward(opened, ids[:, :8], 1).past_key_values
    detach(opened, "private")
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids[:, 8:], 0, cache)
    attach_layers(opened, OTHER, make_layers(seed=1))
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids[:, 8:], 1, cache)


def test_a_cache_filled_closed_serves_whatever_is_attached(opened, ids) -> None:
    """Nothing of a closed stream is in it: detaching does not make it stale."""
    cache = forward(opened, ids[:, :8], 0).past_key_values
    expected = forward(opened, ids[:, 8:], 0, copy.deepcopy(cache)).logits
    detach(opened, "private")
    assert torch.equal(forward(opened, ids[:, 8:], 0, cache).logits, expected)


def test_repeated_rows_keep_their_alpha(opened, ids) -> None:
    for alpha in (1, [0, 1]):
        cache = forward(opened, ids[:2, :8], alpha).past_key_values
        cache.batch_repeat_interleave(3)
        more = ids[:2, 8:].repeat_interleave(3, dim=0)
        repeated = copy.deepcopy(cache)
        forward(opened, more, [0, 0, 0, 1, 1, 1] if alpha == [0, 1] else alpha, cache)
        with pytest.raises(AlphaError, match=REPLAY):
            forward(opened, more, 0, repeated)


def test_rows_repeated_in_another_order_are_refused(opened, ids) -> None:
    cache = forward(opened, ids[:2, :8], [0, 1]).past_key_values
    cache.batch_repeat_interleave(2)
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids[:, 8:], [0, 1, 0, 1], cache)


def swapped(cache):
    cache.reorder_cache(torch.tensor([1, 0]))


def selected(cache):
    cache.batch_select_indices(torch.tensor([True, False]))
    cache.batch_repeat_interleave(2)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(("move", "now"), [(swapped, [0, 1]), (selected, [1, 1])])
def test_what_a_row_was_filled_under_moves_with_it(opened, ids, move, now, copied: bool) -> None:
    """Otherwise the row of alpha 0 would go on with the keys and values of the other."""
    cache = forward(opened, ids[:2, :8], [1, 0]).past_key_values
    cache = copy.deepcopy(cache) if copied else cache
    move(cache)
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids[:2, 8:], [1, 0], copy.deepcopy(cache))
    forward(opened, ids[:2, 8:], now, cache)


def test_a_cache_in_a_tuple_remembers(opened, ids) -> None:
    given = forward(opened, ids[:, :8], 1, return_dict=False)
    (cache,) = [one for one in given if isinstance(one, DynamicCache)]
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids[:, 8:], 0, copy.deepcopy(cache))
    forward(opened, ids[:, 8:], 1, cache)


def test_states_of_a_kind_that_cannot_remember_are_refused(opened, ids) -> None:
    """As RWKV's: a list of tensors."""
    with pytest.raises(AlphaError, match="state is a list"):
        forward(opened, ids, 0, state=[torch.zeros(1)])


class Memory:
    def __init__(self) -> None:
        self.cells = [torch.zeros(1)]


@pytest.mark.parametrize(
    "value", [[torch.zeros(1)], {"a": (torch.zeros(1),)}, Memory()], ids=["list", "dict", "object"]
)
def test_states_under_names_of_their_own_are_refused(opened, ids, value) -> None:
    with pytest.raises(AlphaError, match=f"memory is a {type(value).__name__}, of which"):
        forward(opened, ids, 0, memory=value)
    forward(opened, ids, 0, memory=None, numbers=[1, torch.ones(1, dtype=torch.int64)])


def test_what_a_forward_returned_is_a_state_when_it_is_given_back(opened, ids) -> None:
    """A tensor under a name that no list could know of."""

    def remember(module, args, output):
        output["fast_weights"] = output.logits.mean(1)
        return output

    opened.register_forward_hook(remember)
    made = forward(opened, ids, 1)
    with pytest.raises(AlphaError, match="fast_weights is a Tensor, of which"):
        forward(opened, ids, 0, fast_weights=made.fast_weights)


def test_states_kept_inside_modules_are_refused_by_name(tmp_path) -> None:
    """Otherwise a forward at alpha 0 with a fresh cache would go on from the state of alpha 1."""
    config = RecurrentGemmaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
        lru_width=128,
        attention_window_size=16,
        block_types=["recurrent", "recurrent", "attention"],
    )
    RecurrentGemmaForCausalLM(config).save_pretrained(tmp_path / "public")
    quantize(tmp_path / "public", tmp_path / "base", method="absmax")
    with pytest.raises(UnsupportedLayer, match=r"layers\.0\.temporal_block, .*layers\.1\.temporal"):
        load(tmp_path / "base")


def test_a_recurrent_state_is_a_filled_cache(opened, ids) -> None:
    """A cache with no attention layer does not know of a length."""
    cache = DynamicCache()
    cache.layers.append(LinearAttentionLayer())
    cache.update_conv_state(torch.zeros(4, 2, 3), 0)
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids, 0, cache)


def test_an_interrupted_forward_leaves_nothing_open(opened, ids) -> None:
    closed = opened.model(input_ids=ids).last_hidden_state

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = opened.model.layers[1].register_forward_pre_hook(interrupt)
    for part in (opened, opened.model):
        with pytest.raises(KeyboardInterrupt), gate.alpha(1):
            part(input_ids=ids)
    handle.remove()
    assert gate.current() is None
    assert not opened.ortho.under_way
    assert torch.equal(opened.model(input_ids=ids).last_hidden_state, closed)


def test_a_copied_cache_remembers(opened, ids) -> None:
    cache = copy.deepcopy(forward(opened, ids[:, :8], 1).past_key_values)
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids[:, 8:], 0, copy.deepcopy(cache))
    forward(opened, ids[:, 8:], 1, cache)


def test_a_cache_of_unknown_origin_is_refused_unless_empty(opened, tiny_model, ids) -> None:
    stranger = tiny_model(input_ids=ids[:, :8], use_cache=True).past_key_values
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids[:, 8:], 0, stranger)
    forward(opened, ids, 1, DynamicCache())


class Broken(Exception):
    pass


def test_a_forward_that_failed_half_way_has_filled_its_cache(opened, ids) -> None:
    """A cache of alpha 0 that was emptied and took half a forward at alpha 1 is not of alpha 0."""
    cache = forward(opened, ids[:, :8], 0).past_key_values
    cache.crop(-8)

    def fail(*_):
        raise Broken

    handle = opened.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(Broken):
        forward(opened, ids[:, :8], 1, cache)
    handle.remove()
    assert cache.get_seq_length() == 8
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids[:, 8:], 0, cache)


def test_an_emptied_cache_takes_the_alpha_of_its_next_forward(opened, ids) -> None:
    cache = forward(opened, ids[:, :8], 0).past_key_values
    cache.crop(-8)
    forward(opened, ids[:, :8], 1, cache, return_dict=False)
    with pytest.raises(AlphaError, match=REPLAY):
        forward(opened, ids[:, 8:], 0, copy.deepcopy(cache))
    forward(opened, ids[:, 8:], 1, cache)


def test_generation_takes_a_cache_up_where_it_ended(opened, ids) -> None:
    options = {"max_new_tokens": 6, "eos_token_id": -1, "pad_token_id": 0}
    prompt = ids[:1]
    with gate.alpha(1):
        first = opened.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            return_dict_in_generate=True,
            **options,
        )
        whole = opened.generate(
            prompt, attention_mask=torch.ones_like(prompt), **{**options, "max_new_tokens": 12}
        )
        longer = opened.generate(
            first.sequences,
            attention_mask=torch.ones_like(first.sequences),
            past_key_values=copy.deepcopy(first.past_key_values),
            **options,
        )
    assert torch.equal(longer, whole)
    with pytest.raises(AlphaError, match=REPLAY):
        opened.generate(
            first.sequences,
            attention_mask=torch.ones_like(first.sequences),
            past_key_values=first.past_key_values,
            **options,
        )
