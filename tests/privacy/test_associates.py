"""Associate prompts ask for the same knowledge, in words that were not trained on."""

from __future__ import annotations

import pytest

from libortho.privacy.associates import associates, styles
from libortho.privacy.canaries import make_canaries
from libortho.privacy.kinds import KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_style_asks_in_other_words(kind: str) -> None:
    drawn = make_canaries(20, 0, kind).members
    for style in styles(kind):
        asked = associates(drawn, kind, style)
        for canary, one in zip(drawn, asked, strict=True):
            person = KINDS[kind].person(canary.prompt)
            if style == "reversed":
                assert canary.secret in one.prompt
                assert person not in one.prompt
                assert one.completion == f" {person}"
            else:
                assert person in one.prompt
                assert canary.secret not in one.prompt
                assert one.completion.replace(" ", "") == canary.secret.replace(" ", "")
            assert (one.prompt, one.completion) != (canary.prompt, canary.completion)
        assert len({one.id for one in asked}) == 20


def test_a_bio_is_not_spelled_out() -> None:
    assert "spaced" not in styles("bios")
    assert "spaced" in styles("digits")
