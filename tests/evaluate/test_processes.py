"""Other processes: they say what this one says, and their failures are heard."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from libortho.errors import ConfigError, LibOrthoError
from libortho.evaluate import processes, stock
from libortho.evaluate.inputs import Batching, Inputs
from libortho.evaluate.perplexity import token_nll
from libortho.evaluate.processes import run_child, run_stock
from libortho.privacy.canaries import make_canaries
from libortho.privacy.encode import encode, pad
from libortho.privacy.score import score


@pytest.fixture(scope="module")
def canaries(tiny_tokenizer):
    return encode(tiny_tokenizer, make_canaries(7, 0).members)


@pytest.fixture(scope="module")
def inputs(canaries) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return Inputs(
        {
            "text": torch.randint(512, (5, 64), generator=generator),
            "other": torch.randint(512, (2, 16), generator=generator),
        },
        {"members": pad(canaries)},
    )


def test_inputs_survive_the_file(tmp_path: Path, inputs: Inputs) -> None:
    inputs.write(tmp_path / "x.safetensors")
    read = Inputs.read(tmp_path / "x.safetensors")
    assert {k: v.tolist() for k, v in read.windows.items()} == {
        k: v.tolist() for k, v in inputs.windows.items()
    }
    for part in ("input_ids", "attention_mask", "prompt_lengths"):
        assert getattr(read.secrets["members"], part).equal(
            getattr(inputs.secrets["members"], part)
        )
    with pytest.raises(ConfigError):
        Inputs()
    with pytest.raises(ConfigError):
        Inputs({"a.b": torch.zeros(1, 2)})


@pytest.fixture
def memorised(tmp_path: Path, tiny_model, canaries) -> tuple[Path, PreTrainedModel]:
    """A checkpoint that recites the first canary, and the same model in this process."""
    ids = torch.tensor([canaries[0].input_ids])
    optimiser = torch.optim.Adam(tiny_model.parameters(), lr=3e-3)
    for _ in range(25):
        optimiser.zero_grad()
        tiny_model(ids, labels=ids).loss.backward()
        optimiser.step()
    tiny_model.save_pretrained(tmp_path / "memorised")
    return tmp_path / "memorised", tiny_model


def test_stock_says_what_this_process_says(memorised, inputs: Inputs, canaries) -> None:
    directory, model = memorised
    events: list[tuple[str, int, int]] = []
    found = run_stock(
        directory,
        inputs,
        batching=Batching(2, 3),
        progress=lambda stage, done, total, info: events.append((stage, done, total)),
    )
    # One implementation on one machine; only the thread count could reorder the sums of at most
    # 256 products of size below 32: 256 * 32 * 2^-24 = 4.9e-4.
    tolerance = 256 * 32 * 2**-24
    for name, ids in inputs.windows.items():
        result = found.windows[name]
        assert torch.allclose(result.nll, token_nll(model, ids), rtol=0, atol=tolerance)
        with torch.no_grad():
            top = model(ids).logits[:, :-1].topk(2)
        gap = top.values[..., 0] - top.values[..., 1]
        assert torch.allclose(result.gap, gap, rtol=0, atol=2 * tolerance)
        clear = gap > 2 * tolerance
        assert clear.float().mean() > 0.9
        assert result.argmax[clear].equal(top.indices[..., 0][clear])
    secrets = found.secrets["members"]
    ours = score(model, canaries)
    assert secrets.nll.tolist() == pytest.approx([s.nll for s in ours], abs=21 * tolerance)
    assert secrets.matches.tolist() == [s.argmax_matches for s in ours]
    assert secrets.exact.tolist() == [s.exact for s in ours]
    assert secrets.exact.tolist() == [True] + [False] * 6
    assert secrets.matches[0] == 21
    assert found.report["libortho_imported"] is False
    assert found.report["versions"]["torch"] == torch.__version__
    assert found.report["threads"] == torch.get_num_threads()
    assert ("stock text", 5, 5) in events
    assert ("stock members", 7, 7) in events


def test_stock_ends_with_an_error_where_libortho_was_imported(
    tmp_path: Path, tiny_checkpoint: Path, inputs: Inputs
) -> None:
    """This very process is such a one."""
    inputs.write(tmp_path / "inputs.safetensors")
    job = {
        "model": str(tiny_checkpoint),
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "inputs": str(tmp_path / "inputs.safetensors"),
        "output": str(tmp_path / "output.safetensors"),
        "window_batch": 8,
        "secret_batch": 8,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(SystemExit, match="libortho was imported"):
        stock.main(str(tmp_path / "job.json"))
    assert not (tmp_path / "output.safetensors").exists()


def test_the_stock_script_names_nothing_of_ours() -> None:
    tree = ast.parse(processes.STOCK_SCRIPT.read_text())
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert not any(str(name).startswith(("libortho", ".")) or name is None for name in imported)


def test_nan_ends_the_stock_process(tiny_model, inputs: Inputs) -> None:
    with torch.no_grad():
        tiny_model.model.norm.weight[3] = float("nan")
        with pytest.raises(SystemExit, match=r"windows text from 0: .* not finite"):
            stock.evaluate_windows(tiny_model, "text", inputs.windows["text"], 2)


def test_a_child_reports_waits_and_fails_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", 0.2)
    line = json.dumps({"stage": "work", "done": 1, "total": 3, "info": {"loss": 0.5}})
    code = f"import sys, time; print('''{line}''', flush=True); time.sleep(0.7); sys.exit('why')"
    events: list[tuple[str, int, int, dict]] = []
    with pytest.raises(LibOrthoError, match=r"(?s)status 1.*why") as caught:
        run_child(
            [sys.executable, "-c", code],
            "test",
            lambda stage, done, total, info: events.append((stage, done, total, dict(info))),
        )
    assert '"stage"' not in str(caught.value).split("\n", 1)[1]
    assert ("work", 1, 3, {"loss": 0.5}) in events
    waits = [e for e in events if "waited" in e[3] and e[0] == "work"]
    assert len(waits) >= 2


def test_an_interrupted_parent_ends_its_child(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    line = json.dumps({"stage": "work", "done": 0, "total": 1, "info": {}})
    code = (
        f"import time, pathlib; print('''{line}''', flush=True); time.sleep(3); "
        f"pathlib.Path({str(mark)!r}).touch()"
    )

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, "-c", code], "test", interrupt)
    assert not mark.exists()


def test_an_unknown_dtype_is_refused(tiny_checkpoint: Path, inputs: Inputs) -> None:
    with pytest.raises(ConfigError, match="int7"):
        run_stock(tiny_checkpoint, inputs, dtype="int7")
