"""Digests tell one bit apart, and the probe never meets a stream."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from libortho.checkpoint import Checkpoint, linear_layers
from libortho.errors import PairMismatch
from libortho.evaluate.digest import Digest, differences, digest
from libortho.evaluate.inputs import Batching, Inputs
from libortho.evaluate.perplexity import token_nll
from libortho.evaluate.probe import mapped_streams
from libortho.evaluate.processes import run_probe
from libortho.model import load
from libortho.privacy.canaries import make_canaries
from libortho.privacy.encode import encode, pad
from libortho.quantizers import absmax
from libortho.streams.base_writer import QuantisedLayer, write_base
from libortho.streams.manifest import Quantiser


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    out = tmp_path_factory.mktemp("probe") / "base"
    public = Checkpoint(tiny_checkpoint)
    layers, skipped = linear_layers(public.skeleton(), 128)
    quantised = (
        QuantisedLayer(name, *absmax(public.tensor(f"{name}.weight").float(), 128), 0.1)
        for name in layers
    )
    quantiser = Quantiser(method="absmax", bits=4, group_size=128, seed=0, versions={})
    write_base(out, public, layers, quantised, quantiser=quantiser, skipped=skipped)
    return out


@pytest.fixture(scope="module")
def inputs(tiny_tokenizer) -> Inputs:
    encoded = encode(tiny_tokenizer, make_canaries(5, 0).members)
    ids = torch.randint(512, (5, 32), generator=torch.Generator().manual_seed(0))
    return Inputs({"text": ids}, {"members": pad(encoded)})


def test_the_probe_gives_the_digest_of_this_process(base: Path, inputs: Inputs) -> None:
    sizes = Batching(2, 3)
    model = load(base)
    ours = digest(model, inputs, sizes)
    probed = run_probe(base, inputs, batching=sizes)
    assert differences(ours, probed) == ()
    assert ours.settings == probed.settings
    assert {name: len(found) for name, found in probed.hashes.items()} == {
        "windows.text": 3,
        "secrets.members": 2,
    }
    assert probed.nll["windows.text"].equal(token_nll(model, inputs.windows["text"], 2))
    assert probed.tokens == 5 * 32 + inputs.secrets["members"].input_ids.numel()


def test_one_bit_is_seen_where_it_lies(tiny_model, inputs: Inputs) -> None:
    before = digest(tiny_model, inputs, Batching(2, 3))
    assert differences(before, digest(tiny_model, inputs, Batching(2, 3))) == ()
    token = int(inputs.windows["text"][4, 0])
    others = torch.cat([inputs.windows["text"][:4].flatten(), torch.tensor([-1])])
    assert token not in inputs.secrets["members"].input_ids
    assert token not in others
    # Untied, so that the row moves inputs of one window and no logit of another.
    tiny_model.lm_head.weight = torch.nn.Parameter(tiny_model.lm_head.weight.detach().clone())
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight[token] *= 1 + 2**-20
    assert differences(before, digest(tiny_model, inputs, Batching(2, 3))) == ("windows.text[2]",)


def test_digests_of_other_settings_are_not_compared(tiny_model, inputs: Inputs) -> None:
    one = digest(tiny_model, inputs, Batching(2, 3))
    with pytest.raises(PairMismatch, match="window_batch: 2, 3"):
        differences(one, digest(tiny_model, inputs, Batching(3, 3)))
    with pytest.raises(PairMismatch, match="sets"):
        differences(one, dataclasses.replace(one, hashes={}))


def test_digests_survive_the_file(tmp_path: Path, tiny_model, inputs: Inputs) -> None:
    found = digest(tiny_model, inputs)
    found.write(tmp_path / "d.safetensors")
    read = Digest.read(tmp_path / "d.safetensors")
    assert differences(found, read) == ()
    assert read.tokens == found.tokens
    assert all(read.nll[name].equal(found.nll[name]) for name in found.nll)


def test_the_probe_cannot_open_a_stream(tmp_path: Path) -> None:
    stream = tmp_path / "ortho" / "private" / "stream.json"
    stream.parent.mkdir(parents=True)
    stream.write_text("{}")
    code = f"""
import pathlib
from libortho.errors import LibOrthoError
from libortho.evaluate.probe import forbid_streams

base, stream = pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(stream)!r})
forbid_streams(base)
(base / "outside").write_text("allowed")
refused = 0
for path in (stream, base / "ortho" / ".." / "ortho" / "new"):
    try:
        path.open("a")
    except LibOrthoError:
        refused += 1
print("refused", refused)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert done.stdout == "refused 2\n"
    assert (tmp_path / "outside").exists()
    assert not (tmp_path / "ortho" / "new").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_mapped_stream_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "ortho" / "private" / "values.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(4096))
    assert mapped_streams(tmp_path) == []
    mapped = torch.from_file(str(file), size=1024, dtype=torch.float32)
    assert mapped_streams(tmp_path) == [str(file)]
    del mapped
