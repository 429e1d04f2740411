"""``tune`` and ``generate``: a stream is made, and used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from libortho import gate
from libortho.cli.console import about, emit, shown
from libortho.cli.options import (
    Density,
    Device,
    Json,
    Lr,
    Out,
    Plan,
    Public,
    Seed,
    Steps,
    Stream,
    Texts,
    Weight,
    text,
)
from libortho.evaluate.inputs import as_dtype
from libortho.model import load, ortho
from libortho.privacy.private_set import read_jsonl
from libortho.streams.ortho import MANIFEST, STREAM_FOLDER
from libortho.streams.ortho_writer import vacant
from libortho.tune import tune, tune_options
from libortho.tune.plan import peak


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("tune")(tune_verb)
    app.command("generate")(generate_verb)


def tune_verb(
    source: Annotated[str, typer.Argument(help="A base, or a public checkpoint.")],
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Private JSONL.")],
    out: Out,
    public: Public = None,
    stream: Stream = "private",
    texts: Texts = None,
    density: Density = None,
    steps: Steps = None,
    lr: Lr = None,
    replay_weight: Weight = None,
    seed: Seed = None,
    device: Device = "cpu",
    plan: Plan = False,
    json: Json = False,
) -> None:
    """Train private data into a stream of its own; no byte of the base changes."""
    options = tune_options(**_given(density, steps, lr, replay_weight, seed))
    if plan:
        vacant(out, stream)
        needs = peak(source, read_jsonl(data), options)
        emit(needs, json, "\n".join(f"{name}: {value:,}" for name, value in needs.items()))
        return
    with shown() as progress:
        made = tune(
            source,
            data,
            out,
            public=public,
            stream=stream,
            text=text(texts),
            options=options,
            device=device,
            progress=progress,
        )
    result = about(made.stream) | {
        "recall": made.recall,
        "teacher": made.teacher,
        "steps": made.steps,
    }
    emit(
        result,
        json,
        f"{made.stream.path}: recall {made.recall:.1%} at α=1 after {made.steps} "
        f"steps, density {made.stream.manifest.density:.4f}, teacher {made.teacher}",
    )


def generate_verb(
    model: Annotated[Path, typer.Argument(help="A base directory.")],
    prompt: Annotated[str, typer.Argument()],
    ortho_alpha: Annotated[
        str, typer.Option(help="α: a number, or private=1,repair=1. 0 opens nothing.")
    ] = "0",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    sample: Annotated[bool, typer.Option("--sample", help="Sample at T = 1 instead.")] = False,
    seed: int = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Complete a prompt; only the completion goes to stdout."""
    setting = gate.parse(ortho_alpha)
    folder = model / STREAM_FOLDER
    names = sorted(file.parent.name for file in folder.glob(f"*/{MANIFEST}"))
    # With α = 0 there is nothing to read: the streams stay on disk.
    closed = not setting or (isinstance(setting, dict) and not any(setting.values()))
    loaded = load(model, [] if closed else names, dtype=as_dtype(dtype), device=device)
    tokenizer = ortho(loaded).base.checkpoint.tokenizer()
    inputs = tokenizer(prompt, return_tensors="pt").to(device)
    torch.manual_seed(seed)
    with gate.alpha(0.0 if closed else setting):
        output = loaded.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=sample,
            num_beams=1,
            **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}),
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
    new = output[0, inputs["input_ids"].shape[1] :]
    completion = tokenizer.decode(new, skip_special_tokens=True)
    if json:
        emit({"completion": completion, "tokens": new.tolist(), "ortho_alpha": setting}, True)
    else:
        sys.stdout.write(completion + "\n")


def _given(
    density: float | None,
    steps: int | None,
    lr: float | None,
    replay_weight: float | None,
    seed: int | None,
) -> dict[str, Any]:
    values = {
        "density": density,
        "steps": steps,
        "lr": lr,
        "replay_weight": replay_weight,
        "seed": seed,
    }
    return {name: value for name, value in values.items() if value is not None}
