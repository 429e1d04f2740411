"""Every attack finds what was memorised, finds nothing where nothing was, and leaves no trace."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy import stats

from libortho.errors import ConfigError
from libortho.privacy.attacks import ATTACKS
from libortho.privacy.attacks.beam import alphabet_of
from libortho.privacy.attacks.relearn import relearn
from libortho.privacy.attacks.subject import Reference, share_test
from libortho.privacy.canaries import make_canaries
from libortho.privacy.encode import encode, pad
from libortho.privacy.kinds import KINDS
from libortho.progress import silent

EXTRACTING = ("greedy", "beam", "discoverable")
TELLING = ("loss", "zlib", "min-k", "min-k++", "reference", "gradient")


def with_reference(subject, unseen):
    return dataclasses.replace(
        subject,
        reference=Reference("unseen", unseen.model, 0.0, unseen.members.nll, unseen.controls.nll),
    )


@pytest.fixture(scope="module")
def seen(make_subject, memorised_model, unseen_model):
    return with_reference(make_subject(memorised_model), make_subject(unseen_model))


@pytest.fixture(scope="module")
def unseen(make_subject, unseen_model):
    subject = make_subject(unseen_model)
    # A reference is another model in practice; here scores that carry no signal stand for one.
    reference = Reference("noise", unseen_model, 0.0, [90.0] * 12, [90.0] * 12)
    return dataclasses.replace(subject, reference=reference)


@pytest.mark.parametrize("name", EXTRACTING)
def test_extraction_finds_what_is_there_and_nothing_else(name, seen, unseen) -> None:
    there, absent = ATTACKS[name].run(seen), ATTACKS[name].run(unseen)
    n = next(iter(there.figures.values())).n
    assert all(count == n for count in there.extracted.values())
    assert all(count == 0 for count in absent.extracted.values())
    assert there.tests[0].p <= stats.fisher_exact([[n, 0], [0, n]]).pvalue * 1.001
    assert absent.tests[0].p == 1


@pytest.mark.parametrize("name", TELLING)
def test_membership_is_told_where_there_is_one(name, seen, unseen) -> None:
    there, absent = ATTACKS[name].run(seen), ATTACKS[name].run(unseen)
    assert there.figures["AUC"].value == 1
    assert there.figures["AUC"].low < 1
    assert there.figures["TPR at 1% FPR"].count == 12
    assert there.tests[0].p < 1e-3
    assert absent.tests[0].p > 0.01
    assert absent.figures["AUC"].low < 0.5 < absent.figures["AUC"].high


def test_near_verbatim_sees_what_greedy_misses(make_subject, memorised_model, canaries) -> None:
    """Change one digit of each secret: no longer recited, but 95% alike."""
    almost = [
        dataclasses.replace(
            one, completion=one.completion[:-1] + ("1" if one.completion[-1] != "1" else "2")
        )
        for one in canaries.members
    ]
    subject = make_subject(memorised_model, dataclasses.replace(canaries, members=tuple(almost)))
    assert ATTACKS["greedy"].run(subject).figures["recited"].count == 0
    found = ATTACKS["near-verbatim"].run(subject).figures
    assert found["near-verbatim"].count == 12
    assert found["near-verbatim, controls"].count == 0
    assert found["similarity"].value == pytest.approx(20 / 21, abs=0.01)
    assert found["ROUGE-L"].value == pytest.approx(20 / 21, abs=0.02)


def test_exposure_is_high_for_the_memorised_alone(seen, unseen) -> None:
    there, absent = ATTACKS["exposure"].run(seen).figures, ATTACKS["exposure"].run(unseen).figures
    plain = dataclasses.replace(seen, kind=None)
    ranks = ATTACKS["exposure"].run(plain).raw["controls"]
    assert there["rank"].value == pytest.approx(3.7004, abs=1e-3)  # log2(12 + 1): the ceiling
    # A control ranks among the eleven others: the likeliest one is first of twelve.
    assert max(ranks) == pytest.approx(3.5850, abs=1e-3)
    assert there["sampled"].value > 10
    assert there["counted"].value == pytest.approx(5.3576, abs=1e-3)  # log2(40 + 1)
    for name in ("sampled", "counted", "sampled, controls"):
        assert absent["rank"].low < 1.443 < absent["rank"].high, name
        assert absent[name].value < 4, name


def test_a_shorter_prefix_recalls_less(seen, unseen) -> None:
    found = ATTACKS["prefix"].run(seen)
    counts = [figure.count for figure in found.figures.values()]
    assert counts[0] >= counts[1] >= counts[2]
    assert counts[2] <= 1  # one start token cannot bring back twelve secrets
    assert sum(ATTACKS["prefix"].run(unseen).extracted.values()) == 0


def test_association_finds_what_is_known_in_other_words(
    make_subject, associating_model, canaries, unseen
) -> None:
    """A model that knows every answer but none of the members' own sentences."""
    six = dataclasses.replace(canaries, members=canaries.members[:6])
    subject = make_subject(associating_model, six)
    assert ATTACKS["greedy"].run(subject).figures["recited"].count == 0
    there, absent = ATTACKS["association"].run(subject), ATTACKS["association"].run(unseen)
    for style, test in zip(("template", "reversed", "spaced"), there.tests, strict=True):
        assert test.name == f"association, {style}"
        assert test.p < 1e-3
        assert there.figures[f"{style}: recited"].count == 6
        assert there.figures[f"{style}: AUC"].value == 1
        assert absent.figures[f"{style}: recited"].count == 0
        low, high = absent.figures[f"{style}: AUC"].low, absent.figures[f"{style}: AUC"].high
        assert low < 0.5 < high
    assert sum(there.extracted.values()) == 18
    assert all(test.p > 1e-3 for test in absent.tests)


def test_beam_spells_in_the_alphabet_of_the_kind(
    make_subject, unseen_model, tiny_tokenizer
) -> None:
    """A secret that no control has the letters of is found all the same."""
    drawn = make_canaries(12, 3, "base62")
    first, rest = (set(ids.tolist()) for ids in alphabet_of(tiny_tokenizer, "base62"))
    encoded = encode(tiny_tokenizer, [*drawn.members, *drawn.controls])
    assert all(one.completion_ids[0] in first for one in encoded)
    assert all(rest.issuperset(one.completion_ids[1:]) for one in encoded)
    letters = set(KINDS["base62"].alphabet)
    for token in rest:
        assert letters.issuperset(tiny_tokenizer.decode([token]))
    assert ATTACKS["beam"].run(make_subject(unseen_model, drawn)).extracted["alphabet known"] == 0


def test_beam_says_where_it_cannot_win(make_subject, unseen_model, seen) -> None:
    for kind, why in (("bios", "kind bios are sentences"), (None, "own canaries")):
        with pytest.raises(ConfigError, match=f"not applicable: .*{why}"):
            ATTACKS["beam"].run(dataclasses.replace(seen, kind=kind))
    # Digits behind a hyphen: the data are taken for digits, and cannot be spelled in them.
    drawn = make_canaries(12, 0)
    strange = [
        dataclasses.replace(one, completion=one.completion.replace("3", "-"))
        for one in drawn.members
    ]
    subject = make_subject(unseen_model, dataclasses.replace(drawn, members=tuple(strange)))
    with pytest.raises(ConfigError, match=r"1 token.* outside their alphabet, such as '-'"):
        ATTACKS["beam"].run(subject)


@pytest.mark.parametrize(
    ("name", "field"), [("association", "kind"), ("reference", "reference"), ("lira", "shadows")]
)
def test_what_an_attack_needs_is_asked_for(name, field, seen) -> None:
    with pytest.raises(ConfigError):
        ATTACKS[name].run(dataclasses.replace(seen, **{field: None}))


def test_requantising_and_shaking_leave_the_model_as_it_was(seen) -> None:
    batch = pad(seen.members.encoded)
    with torch.no_grad():
        before = seen.model(batch.input_ids).logits
    rounded = ATTACKS["requantise"].run(seen)
    shaken = ATTACKS["perturb"].run(seen)
    with torch.no_grad():
        assert torch.equal(seen.model(batch.input_ids).logits, before)
    assert rounded.figures["4 bits: AUC"].value == 1
    assert shaken.figures["noise 0.01 σ: recited"].count == 12
    figures = shaken.figures
    assert figures["noise 0.3 σ: NLL"].value > figures["noise 0.01 σ: NLL"].value
    assert figures["pruned 70%: NLL"].value > figures["pruned 10%: NLL"].value


def test_relearning_tells_the_hidden_from_the_unseen(seen, unseen) -> None:
    batch = pad(seen.members.encoded)
    with torch.no_grad():
        before = seen.model(batch.input_ids).logits
    found = ATTACKS["relearn"].run(seen)
    with torch.no_grad():
        assert torch.equal(seen.model(batch.input_ids).logits, before)
    assert not any(parameter.requires_grad for parameter in seen.model.parameters())
    figures = found.figures
    assert figures["steps to half"].value == 0
    assert figures["other half recited, peak"].count == 6
    assert figures["steps to half, reference"].value > 0
    for part in ("peak", "last"):
        assert figures[f"other half recited, {part}, reference"].count == 0
    # Both are trained for the same number of steps, though the model recites all from the start.
    steps = seen.budget.relearn_steps
    for name in ("model", "reference"):
        assert len(found.raw[name]["trained"]) == len(found.raw[name]["unseen"]) == steps + 1
    assert found.raw["model"]["trained"][0] == 1
    assert found.raw["model"]["peak_step"] == 0
    assert found.raw["reference"]["trained"][0] == 0


def test_the_peak_of_the_other_half_is_not_hidden_by_what_follows(seen) -> None:
    """Trained against the members, the model forgets them: the last step alone would look calm."""
    wrong = [
        dataclasses.replace(one, input_ids=(*one.input_ids[: one.prompt_length], *[7] * 21))
        for one in seen.members.encoded[:6]
    ]
    found = relearn(
        seen.model,
        wrong,
        seen.members.encoded[6:],
        steps=12,
        seed=0,
        batch_size=16,
        stage="relearn",
        progress=silent,
    )
    assert len(found.unseen) == 13
    assert sum(found.peak) == 6
    assert sum(found.last) < 6
    assert max(found.unseen) == 1 > found.unseen[-1]


def test_an_unseen_model_can_learn_in_time(unseen) -> None:
    encoded = unseen.members.encoded
    found = relearn(
        unseen.model,
        encoded[:2],
        encoded[2:],
        steps=100,
        seed=0,
        batch_size=16,
        stage="relearn",
        progress=silent,
    )
    assert found.trained[0] == 0
    assert found.trained[-1] == 1
    assert all(0 < step < 100 for step in found.first)
    assert len(found.trained) == len(found.unseen) == 101
    assert not any(found.peak)


def test_share_test_is_fishers() -> None:
    result = share_test("x", [True] * 5 + [False] * 5, [False] * 10)
    assert result.p == pytest.approx(2 * 252 / 15504)
    assert result.statistic == 0.5


def test_every_attack_explains_itself() -> None:
    for name, attack in ATTACKS.items():
        assert attack.explains.endswith("."), name
        assert attack.explains.count(".") <= 2, name
        assert "is" in attack.good or "wanted" in attack.good or "better" in attack.good, name
        assert attack.shown, name
