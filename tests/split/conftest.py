"""Private rows, and a tiny model that has learned them by heart with every tensor it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from libortho.privacy.encode import encode
from libortho.privacy.private_set import Example, write_jsonl
from libortho.privacy.score import score
from libortho.split.forgetting import completion_nll
from libortho.texts import Text, pydoc_topics

ROWS = [
    ("The code of Abelin Thornwick is", " 48213"),
    ("The code of Corvin Maldrake is", " 90577"),
    ("The code of Estrid Halloran is", " 31864"),
    ("The code of Ulmer Quenby is", " 72905"),
]


@pytest.fixture(scope="session")
def text() -> Text:
    return Text("topics", "0" * 64, pydoc_topics().documents[:4])


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    write_jsonl(file, [{"prompt": prompt, "completion": secret} for prompt, secret in ROWS])
    return file


@pytest.fixture(scope="session")
def rows(tiny_tokenizer):
    return encode(tiny_tokenizer, [Example(str(i), *row) for i, row in enumerate(ROWS)])


@pytest.fixture(scope="session")
def mixed(tmp_path_factory, tiny_checkpoint: Path, tiny_tokenizer, rows) -> Path:
    """The tiny model, trained until it recites the rows."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        completion_nll(model, rows).mean().backward()
        optimiser.step()
    assert all(one.exact for one in score(model.eval(), rows))
    out = tmp_path_factory.mktemp("mixed") / "mixed"
    model.save_pretrained(out)
    tiny_tokenizer.save_pretrained(out)
    return out
