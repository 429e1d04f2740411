"""The READMEs show what the records say, to the last digit."""

from __future__ import annotations

import pytest
from recipes.readme import ROOT, WORDS, filled


@pytest.mark.parametrize("name", list(WORDS))
def test_figures_are_those_of_the_records(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert filled(text, WORDS[name]) == text, "run python -m recipes.readme"
