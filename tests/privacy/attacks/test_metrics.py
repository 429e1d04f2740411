"""The formulas of the attacks against values worked out by hand or by brute force."""

from __future__ import annotations

import copy
import itertools
import math
import zlib as compressor
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from tokenizers import processors

from libortho.errors import ConfigError
from libortho.privacy.attacks import zlib
from libortho.privacy.attacks.beam import alphabet_of, beam_search
from libortho.privacy.attacks.discoverable import UNREACHABLE, log10_queries
from libortho.privacy.attacks.gradient import gradient_norms
from libortho.privacy.attacks.greedy import strength
from libortho.privacy.attacks.lira import log_ratio, logit
from libortho.privacy.attacks.min_k import lowest_mean
from libortho.privacy.attacks.min_k_plus import standardised
from libortho.privacy.attacks.near_verbatim import levenshtein, rouge_l, similarity
from libortho.privacy.attacks.perturb import noise, prune
from libortho.privacy.attacks.prefix import shortened, start_ids
from libortho.privacy.attacks.requantise import rounded
from libortho.privacy.attacks.subject import Budget, Half
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.private_set import Example
from libortho.privacy.roc import auc_estimate
from libortho.privacy.shadows import Shadows
from libortho.privacy.token_scores import TokenScores


@pytest.mark.parametrize(
    ("p", "chance", "queries"),
    [
        (0.5, 0.5, 1),
        (0.1, 0.5, 7),
        (0.1, 0.9, 22),
        (0.75, 0.9375, 2),
        (1.0, 0.9, 1),
        (0.01, 0.5, 69),
    ],
)
def test_queries_are_the_fewest_that_reach_the_chance(p, chance, queries) -> None:
    assert 10 ** log10_queries(math.log(p), chance) == pytest.approx(queries)
    assert 1 - (1 - p) ** queries >= chance - 1e-12
    if queries > 1:
        assert 1 - (1 - p) ** (queries - 1) < chance


def test_queries_for_tiny_chances_do_not_underflow() -> None:
    assert log10_queries(-9 * math.log(10), 0.5) == pytest.approx(9 + math.log10(math.log(2)))
    near, far = log10_queries(-29.999, 0.5), log10_queries(-30.001, 0.5)
    assert far - near == pytest.approx(0.002 / math.log(10), abs=1e-6)
    assert log10_queries(-400.0, 0.5) == pytest.approx(400 / math.log(10) - 0.159, abs=1e-3)
    assert log10_queries(-math.inf, 0.5) == UNREACHABLE


@cache
def edits(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    return min(
        edits(one[1:], other) + 1,
        edits(one, other[1:]) + 1,
        edits(one[1:], other[1:]) + (one[0] != other[0]),
    )


@settings(max_examples=80, deadline=None)
@given(one=st.text("abc", max_size=7), other=st.text("abc", max_size=7))
def test_levenshtein_is_the_recursion(one: str, other: str) -> None:
    assert levenshtein(one, other) == edits(one, other)


def test_texts_compared() -> None:
    assert levenshtein("kitten", "sitting") == 3
    assert similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert similarity("", "") == 1


@settings(max_examples=60, deadline=None)
@given(
    one=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    other=st.lists(st.integers(0, 2), min_size=1, max_size=6),
)
def test_rouge_is_f1_of_the_longest_common_subsequence(one: list[int], other: list[int]) -> None:
    def subsequences(items: list[int]) -> set[tuple[int, ...]]:
        return {c for n in range(len(items) + 1) for c in itertools.combinations(items, n)}

    longest = max(len(s) for s in subsequences(one) & subsequences(other))
    precision, recall = longest / len(one), longest / len(other)
    f1 = 2 * precision * recall / (precision + recall) if longest else 0
    assert rouge_l(one, other) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("hits", "wanted"), [("1111", 1), ("0111", 0.75), ("1101", 0.25), ("1110", 0), ("0000", 0)]
)
def test_strength_counts_the_tail_that_needs_no_help(hits: str, wanted: float) -> None:
    assert strength(np.array([hit == "1" for hit in hits])) == wanted


def scores(log_prob, mean=0.0, std=1.0) -> TokenScores:
    values = np.asarray(log_prob, float)
    return TokenScores(values, values * 0 + mean, values * 0 + std, values, values > -1)


def test_the_least_likely_fifth() -> None:
    assert lowest_mean(np.array([-1.0, -9.0, -2.0, -7.0, *[-0.5] * 6]), 0.2) == -8
    assert lowest_mean(np.array([-3.0, -1.0]), 0.2) == -3


def test_standardised_tokens() -> None:
    assert standardised(scores([-3.0, -5.0], mean=-4.0, std=2.0)).tolist() == [0.5, -0.5]
    assert np.isfinite(standardised(scores([0.0], mean=0.0, std=0.0))).all()


def test_zlib_divides_by_what_the_secret_compresses_to() -> None:
    example = Example("a", "p", " aaaaaaaaaaaaaaaaaaaaaaaaa")
    half = Half([example], [Encoded((0, 1), 1)], [scores([-6.0])])
    size = len(compressor.compress(example.completion.encode()))
    assert size < len(example.completion)
    assert zlib._scores(half) == [6.0 / size]


def simulated(runs: int, examples: int, shift: float, seed: int = 0):
    """Shadows and target losses whose phi is normal with standard deviation 1 in and out."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(0, 3, examples)
    inside = np.zeros((runs, examples), dtype=bool)
    for column in range(examples):
        inside[rng.permutation(runs)[: runs // 2], column] = True
    member = np.arange(examples) < examples // 2
    phi = hardness + rng.normal(size=(runs, examples)) + shift * inside
    target = hardness + rng.normal(size=examples) + shift * member

    def nll(values):
        return np.log1p(np.exp(-values))

    return Shadows(nll(phi), inside), nll(target), member


def test_logit_undoes_the_softplus() -> None:
    phi = np.array([-30.0, -3.0, 0.0, 4.0, 15.0])
    assert logit(np.log1p(np.exp(-phi))) == pytest.approx(phi, rel=1e-6)
    assert np.isfinite(logit(np.array([0.0, 1000.0]))).all()


@pytest.mark.parametrize("runs", [16, 128])
def test_lira_reaches_the_power_of_the_normal_law(runs: int) -> None:
    """Two unit normals one and a half apart: AUC = Phi(1.5 / sqrt 2), which loss alone misses."""
    shadows, target, member = simulated(runs, 1200, 1.5)
    found = -log_ratio(target, shadows, np.ones(1200))
    value = auc_estimate(found[member], found[~member], seed=0, resamples=200).value
    assert value == pytest.approx(norm.cdf(1.5 / math.sqrt(2)), abs=0.03)
    plain = auc_estimate(target[member], target[~member], seed=0, resamples=200).value
    assert plain < value - 0.1


def test_lira_of_the_unseen_is_chance() -> None:
    shadows, target, member = simulated(16, 1200, 0.0)
    found = -log_ratio(target, shadows, np.ones(1200))
    interval = auc_estimate(found[member], found[~member], seed=0, resamples=500).interval
    assert interval.low < 0.5 < interval.high


def test_lira_is_the_ratio_of_two_fitted_normals() -> None:
    shadows, target, _ = simulated(64, 3, 1.0)
    phi, ours = logit(shadows.nll / 5), logit(target / 5)
    for column, found in enumerate(log_ratio(target, shadows, np.full(3, 5.0))):
        inside = shadows.inside[:, column]
        a, b = phi[inside, column], phi[~inside, column]
        direct = norm.logpdf(ours[column], a.mean(), a.std(ddof=1))
        direct -= norm.logpdf(ours[column], b.mean(), b.std(ddof=1))
        assert found == pytest.approx(direct)


def test_a_full_beam_is_an_exhaustive_search(unseen_model) -> None:
    prompt, alphabet = (0, 40, 41), (torch.tensor([7, 9]), torch.tensor([5, 6, 8]))
    ids, total = beam_search(unseen_model, prompt, 3, alphabet, width=18)
    every = [(a, b, c) for a in (7, 9) for b in (5, 6, 8) for c in (5, 6, 8)]
    rows = torch.tensor([[*prompt, *one] for one in every])
    with torch.no_grad():
        log_p = torch.log_softmax(unseen_model(rows).logits.double(), -1)
    truth = {
        one: sum(float(log_p[i, 2 + t, one[t]]) for t in range(3)) for i, one in enumerate(every)
    }
    found = {tuple(row): float(value) for row, value in zip(ids.tolist(), total, strict=True)}
    assert found.keys() == truth.keys()
    assert all(found[one] == pytest.approx(truth[one], abs=1e-4) for one in truth)
    assert list(total) == sorted(total, reverse=True)
    few, _ = beam_search(unseen_model, prompt, 3, alphabet, width=40)
    assert len({tuple(row) for row in few.tolist()}) >= 18


def test_a_search_without_tokens_is_refused(unseen_model) -> None:
    none, some = torch.tensor([], dtype=torch.int64), torch.tensor([7, 9])
    for alphabet in ((none, some), (some, none)):
        with pytest.raises(ConfigError, match="tokens to choose from"):
            beam_search(unseen_model, (0, 40), 3, alphabet, width=4)
    assert beam_search(unseen_model, (0, 40), 1, (some, none), width=2)[0].shape == (2, 1)


def test_the_alphabet_of_digits(tiny_tokenizer) -> None:
    first, rest = alphabet_of(tiny_tokenizer, "digits")
    assert tiny_tokenizer.convert_ids_to_tokens(first.tolist()) == ["Ġ"]
    assert sorted(tiny_tokenizer.convert_ids_to_tokens(rest.tolist())) == list("0123456789")


def test_gradient_norms_are_those_of_autograd(unseen_model, tiny_tokenizer, canaries) -> None:
    encoded = encode(tiny_tokenizer, canaries.members)[:3]
    encoded.append(Encoded(encoded[0].input_ids[:-5], encoded[0].prompt_length))
    found = gradient_norms(unseen_model, encoded)
    weights = [p for n, p in unseen_model.named_parameters() if "proj" in n]
    assert len(weights) == 14
    try:
        for p in weights:
            p.requires_grad_(True)
        for item, norm_found in zip(encoded, found, strict=True):
            logits = unseen_model(torch.tensor([item.input_ids])).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits[item.prompt_length - 1 :], torch.tensor(item.completion_ids)
            )
            gradients = torch.autograd.grad(loss, weights)
            truth = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            assert norm_found == pytest.approx(truth, rel=1e-4)
    finally:
        unseen_model.requires_grad_(False)


@pytest.mark.parametrize(("share", "kept"), [(1.0, 6), (0.5, 3), (0.25, 2), (0.0, 0)])
def test_a_shortened_prompt_keeps_its_end_and_the_start_token(share: float, kept: int) -> None:
    whole = Encoded((0, 11, 12, 13, 14, 15, 16, 91, 92), 7)
    found = shortened(whole, share, (0,))
    assert found.completion_ids == (91, 92)
    assert found.input_ids[: found.prompt_length] == (0, *range(17 - kept, 17))


def test_the_start_is_the_post_processors(tiny_tokenizer) -> None:
    assert start_ids(tiny_tokenizer) == (0,)
    bare = copy.deepcopy(tiny_tokenizer)
    bare.backend_tokenizer.post_processor = processors.ByteLevel()
    assert bare("")["input_ids"] == []
    bare.bos_token = None
    assert start_ids(bare) == (bare.eos_token_id,)
    bare.eos_token = None
    with pytest.raises(ConfigError, match="no start or end token"):
        start_ids(bare)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_rounding_is_idempotent_and_counts_its_levels(bits: int) -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    once = rounded(weight, bits)
    assert torch.equal(rounded(once, bits), once)
    assert all(len(group.unique()) <= 2**bits for group in once.view(-1, 128))
    errors = [float((rounded(weight, b) - weight).norm()) for b in (2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert rounded(weight[:, :100], bits).shape == (8, 100)


def test_noise_and_pruning_are_of_the_size_they_say() -> None:
    weight = 0.02 * torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    added = noise(0.1, seed=1)(weight) - weight
    assert float(added.std() / weight.std()) == pytest.approx(0.1, rel=0.02)
    pruned = prune(0.3)(weight)
    assert float((pruned == 0).float().mean()) == pytest.approx(0.3, abs=1e-4)
    assert weight.abs()[pruned == 0].max() <= weight.abs()[pruned != 0].min()
    sparse = torch.where(torch.rand(weight.shape) < 0.4, 0.0, weight)
    held = sparse != 0
    removed = held & (prune(0.1)(sparse) == 0)
    assert float(removed[held].float().mean()) == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("candidates", [1, 19])
def test_too_few_candidates_are_refused_before_any_attack(candidates: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 20, found {candidates}"):
        Budget(candidates=candidates)
