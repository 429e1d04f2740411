"""The shipped arithmetic is what its recipe makes, and true."""

from __future__ import annotations

import importlib.resources
import json
import re
from pathlib import Path

from recipes.reference import arithmetic as module
from recipes.reference.arithmetic import ASKED_SEEDS, asked, write_arithmetic
from tokenizers import Tokenizer

from libortho import texts
from libortho.evaluate.arithmetic import replayed_operands

SHIPPED = Path(str(importlib.resources.files("libortho"))) / "reference"
RESULTS = Path(module.__file__).with_name("results") / "results.json"


def test_the_recipe_makes_the_shipped_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    told = write_arithmetic(tokenizer, tmp_path)
    name = "arithmetic.txt.xz"
    assert (tmp_path / name).read_bytes() == (SHIPPED / "text" / name).read_bytes()
    assert told.items() <= json.loads(RESULTS.read_text("utf-8"))["samples"].items()
    assert str(told[name]["sha256"]) in (SHIPPED / "README.md").read_text("utf-8")


def test_every_answer_is_true_and_none_is_asked_by_the_experiments() -> None:
    for document in texts.arithmetic().documents:
        a, sign, b, answer = re.search(r"(\d+) (\S+) (\d+).*? (-?\d+)$", document).groups()
        sign = {"plus": "+", "minus": "-", "times": "*"}.get(sign, sign)
        numbers = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
        assert int(answer) == numbers[sign], document
    assert not replayed_operands() & set().union(*map(asked, ASKED_SEEDS))
