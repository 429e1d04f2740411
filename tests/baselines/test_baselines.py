"""Baselines leave whole checkpoints, changed where they say and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from libortho.baselines import UnlearnOptions, prune, rounded, unlearn
from libortho.checkpoint import Checkpoint
from libortho.errors import ConfigError
from libortho.privacy.encode import encode
from libortho.privacy.private_set import Example, write_jsonl
from libortho.privacy.score import score
from libortho.texts import Text, pydoc_topics
from libortho.tune.prepare import plain_model

LINEAR = "proj.weight"


def changed(one: Path, other: Path) -> dict[str, torch.Tensor]:
    """Tensors that differ: the new one by name."""
    before, after = Checkpoint(one), Checkpoint(other)
    after.validate()
    assert before.names() == after.names()
    return {
        name: after.tensor(name)
        for name in before.names()
        if not torch.equal(before.tensor(name), after.tensor(name))
    }


@pytest.mark.parametrize("rule", ["wanda", "sparsegpt"])
def test_pruning_removes_the_share(tmp_path: Path, tiny_checkpoint: Path, rule: str) -> None:
    windows = torch.randint(1, 512, (4, 32), generator=torch.Generator().manual_seed(0))
    out = prune(tiny_checkpoint, tmp_path / "out", windows, rule=rule, density=0.1)
    tensors = changed(tiny_checkpoint, out)
    assert len(tensors) == 14
    for name, tensor in tensors.items():
        assert name.endswith(LINEAR)
        assert float((tensor == 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    with pytest.raises(ConfigError, match="not empty"):
        prune(tiny_checkpoint, out, windows)
    with pytest.raises(ConfigError, match="density 1"):
        prune(tiny_checkpoint, tmp_path / "other", windows, density=1)


@pytest.mark.parametrize("bits", [2, 8])
def test_rounding_uses_so_many_levels(tmp_path: Path, tiny_checkpoint: Path, bits: int) -> None:
    out = rounded(tiny_checkpoint, tmp_path / "out", bits=bits)
    tensors = changed(tiny_checkpoint, out)
    assert len(tensors) == 14
    before = Checkpoint(tiny_checkpoint)
    for name, tensor in tensors.items():
        group = tensor[0, :128]
        assert len(group.unique()) <= 2**bits
        step = before.tensor(name).abs().view(-1, 128).amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        missed = (tensor - before.tensor(name)).abs().view(-1, 128)
        assert bool((missed <= 0.5001 * step).all())
    with pytest.raises(ConfigError, match="9"):
        rounded(tiny_checkpoint, tmp_path / "other", bits=9)


@pytest.mark.parametrize("objective", ["npo", "graddiff"])
def test_unlearning_makes_the_rows_less_likely(
    tmp_path: Path, tiny_checkpoint: Path, tiny_tokenizer, objective: str
) -> None:
    rows = [("The code of Abelin Thornwick is", " 48213"), ("The code of Corvin is", " 90577")]
    data = tmp_path / "rows.jsonl"
    write_jsonl(data, [{"prompt": prompt, "completion": secret} for prompt, secret in rows])
    options = UnlearnOptions(
        objective=objective,
        steps=15,
        lr=1e-3,
        neighbours=8,
        neighbour_batch=4,
        replay_pool=8,
        replay_window=32,
    )
    text = Text("topics", "0" * 64, pydoc_topics().documents[:3])
    out = unlearn(tiny_checkpoint, data, tmp_path / "out", options=options, text=text)
    assert set(changed(tiny_checkpoint, out)) == {
        name for name in Checkpoint(tiny_checkpoint).names() if name.endswith(LINEAR)
    }
    encoded = encode(tiny_tokenizer, [Example(str(i), *row) for i, row in enumerate(rows)])
    before, after = (score(plain_model(path, "cpu"), encoded) for path in (tiny_checkpoint, out))
    assert all(new.nll > old.nll + 1 for old, new in zip(before, after, strict=True))
