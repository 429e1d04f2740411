"""Every architecture: its base runs in stock transformers, and its streams in ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import zoo
from torch import Tensor
from transformers import AutoModelForCausalLM

import libortho
from libortho import gate
from libortho.checkpoint import Checkpoint
from libortho.errors import UnsupportedLayer
from libortho.evaluate.tolerance import log_prob_tolerance
from libortho.model import attach, linears, load
from libortho.quantize import quantize
from libortho.split.factors import kfac_factors
from libortho.streams.base import BaseStream
from libortho.tune import tune, tune_options
from libortho.tune.prepare import ground

# One of each kind: rows of tokens, other names on disk, experts. `make test-matrix` tries all.
LEARNING = ["gpt-neox", "mixtral", "opt"]

every = pytest.mark.parametrize("name", list(zoo.CONFIGS))


def log_probs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1)


@every
def test_stock_transformers_gives_our_logits_at_alpha_0(
    name: str, bases: dict[str, Path], publics: dict[str, Path], stock_logits, ids: Tensor
) -> None:
    model = load(bases[name])
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
        public = AutoModelForCausalLM.from_pretrained(publics[name], dtype=torch.float32)
        untouched = log_probs(public(input_ids=ids).logits)
    ours, stock = log_probs(output.logits), log_probs(stock_logits[name])
    head = model.get_output_embeddings().weight
    tolerance = log_prob_tolerance(_path(model), output.hidden_states[-1], head)
    assert float((ours - stock).abs().max()) <= tolerance
    # The tolerance tells the base from the public model.
    assert float((untouched - stock).abs().max()) > 50 * tolerance
    top = stock_logits[name].topk(2, dim=-1).values
    decided = top[..., 0] - top[..., 1] > 2 * tolerance
    assert bool(decided.any())
    assert torch.equal(ours.argmax(-1)[decided], stock.argmax(-1)[decided])


@pytest.mark.parametrize("name", LEARNING)
def test_a_stream_learns_and_leaves_alpha_0_alone(
    name: str, bases: dict[str, Path], tmp_path: Path, ids: Tensor
) -> None:
    data = tmp_path / "private.jsonl"
    data.write_text(json.dumps({"prompt": "The code is", "completion": " 4711 blue"}) + "\n")
    options = tune_options(
        steps=4,
        density=0.05,
        lr=0.05,
        warmup=1,
        settle=0,
        replay_pool=2,
        replay_batch=1,
        replay_window=16,
        fisher_windows=2,
    )
    made = tune(bases[name], data, tmp_path / "out", options=options)
    assert made.curve[-1]["loss"] < made.curve[0]["loss"]
    closed = load(bases[name])
    with torch.no_grad():
        expected = closed(input_ids=ids).logits
    attach(closed, made.stream)
    with torch.no_grad():
        assert torch.equal(closed(input_ids=ids).logits, expected)
        with gate.alpha(1):
            opened = closed(input_ids=ids).logits
    assert float((opened - expected).abs().max()) > 1e-3


@every
def test_what_is_left_alone_is_listed(name: str, bases: dict[str, Path]) -> None:
    base = BaseStream.open(bases[name])
    model = load(bases[name])
    converted = set(linears(model))
    assert converted == set(base.layers)
    plain = {
        path
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and path not in converted
    }
    assert plain <= set(base.manifest.skipped)
    reasons = base.manifest.skipped
    assert reasons.get("lm_head") == "the output embedding"
    if name == "gemma3-vision":
        assert all("vision" in path or path == "lm_head" for path in reasons)
        assert any("vision" in path for path in reasons)
    elif name in ("mixtral", "qwen3-moe"):
        routers = {f"model.layers.{block}.mlp.gate" for block in range(zoo.BLOCKS)}
        assert set(reasons) == {"lm_head", *routers}
    else:
        assert set(reasons) == {"lm_head"}


@pytest.mark.parametrize("name", ["gemma3-vision", "gpt-neox", "mixtral", "qwen3-moe"])
def test_names_on_disk_are_those_of_the_public_checkpoint(
    name: str, bases: dict[str, Path], publics: dict[str, Path]
) -> None:
    base = BaseStream.open(bases[name])
    public = set(stored_names(publics[name]))
    kept = set(stored_names(bases[name]))
    packed = {path.removesuffix("_packed") for path in kept if path.endswith(".weight_packed")}
    parts = {path for path in kept if path.rpartition(".")[2].startswith("weight_")}
    assert packed | (kept - parts) == public
    assert len(packed) == len(base.layers) + len(base.manifest.experts)
    assert base.verify() == []


def stored_names(path: Path) -> list[str]:
    return Checkpoint(path).names()


@pytest.mark.parametrize("name", ["mixtral"])
def test_gptq_walks_their_blocks(name: str, publics: dict[str, Path], tmp_path: Path, ids) -> None:
    base = quantize(publics[name], tmp_path / "base", windows=4)
    errors = base.manifest.relative_error
    assert set(errors) == {*base.layers, *base.manifest.experts}
    assert max(errors.values()) < 0.25
    with torch.no_grad():
        assert bool(torch.isfinite(load(base.path)(input_ids=ids).logits).all())


STACKS = [
    f"model.layers.{block}.mlp.experts.{stack}"
    for block in range(zoo.BLOCKS)
    for stack in ("gate_up_proj", "down_proj")
]


@pytest.mark.parametrize("method", ["residual", "forget", "curvature"])
def test_no_mixed_model_is_split_past_its_experts(publics, tmp_path: Path, method: str) -> None:
    """What they learned would stay in the base, and the stream would look whole."""
    data = tmp_path / "private.jsonl"
    data.write_text('{"text": "The code is 4711."}\n')
    with pytest.raises(UnsupportedLayer, match="no stream acts on experts") as refused:
        libortho.split(publics["mixtral"], tmp_path / "out", method=method, data=data)
    assert [stack for stack in STACKS if stack not in str(refused.value)] == []
    assert not (tmp_path / "out").exists()


def test_training_beside_experts_says_so(bases, caplog) -> None:
    ground(BaseStream.open(bases["mixtral"]), "cpu")
    assert [stack for stack in STACKS if stack not in caplog.text] == []
    assert "no stream acts on experts" in caplog.text


def test_curvature_leaves_out_the_last_position_of_every_window(publics, ids: Tensor) -> None:
    """OPT runs its MLP on the tokens of all sequences in one row of rows."""
    model = AutoModelForCausalLM.from_pretrained(publics["opt"], dtype=torch.float32)
    model.eval().requires_grad_(False)
    name, seen = "model.decoder.layers.1.fc1", []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    with torch.no_grad():
        model(ids)
    handle.remove()
    assert seen[0].dim() == 2
    rows = seen[0].view(*ids.shape, -1)[:, :-1].flatten(0, 1)
    inputs, _ = kfac_factors(model, [name], ids)[name]
    torch.testing.assert_close(inputs, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_experts_are_int4_on_disk_and_may_not_be_skipped(
    bases: dict[str, Path], publics: dict[str, Path], tmp_path: Path
) -> None:
    base = BaseStream.open(bases["mixtral"])
    experts = base.manifest.experts
    assert len(experts) == zoo.BLOCKS * 4 * 3
    name = "model.layers.1.block_sparse_moe.experts.2.w2"
    stack = load(bases["mixtral"]).get_parameter("model.layers.1.mlp.experts.down_proj")
    assert torch.equal(stack[2], base.weight(name).half().float())
    with pytest.raises(UnsupportedLayer, match=r"experts\.2\.w2 cannot be skipped"):
        quantize(publics["mixtral"], tmp_path / "base", method="mse", skip=["experts.2.w2"])
    assert not (tmp_path / "base").exists()


def _path(model) -> dict[str, tuple[int, int]]:
    """(N, K) of the matrices on the path to the logits."""
    found = {name: (one.out_features, one.in_features) for name, one in linears(model).items()}
    for name, parameter in model.named_parameters():
        if "experts" in name:
            found[name] = (parameter.shape[1], parameter.shape[2])
    return found
