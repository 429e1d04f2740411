"""Make the reference model in one command: tokenizer, training, evaluation, sampled text, card.

Everything lands in ``--out``: ``model/`` is the directory that the package ships, ``work/`` is
what a killed run goes on from, ``results.json`` is what the card is written from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from .arithmetic import write_arithmetic
from .budgets import choose_budget
from .card import write_card
from .data import corpus_files, encode_corpus, heldout_windows, train_documents
from .documents import write_atomically
from .evaluate import evaluate
from .export import export
from .model import CONTEXT, VOCABULARY, reference_config
from .progress import Lines
from .sample import SampleOptions, write_samples
from .tokenizer import train_tokenizer
from .train import TrainOptions, TrainResult, train

_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}


def count(text: str) -> int:
    """Read a number of tokens such as ``200k`` or ``300M``."""
    digits, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "")
    try:
        return round(float(digits) * _UNITS.get(unit, 1))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of tokens; write 300000000, 300M or 200k"
        ) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe, or what is left of it."""
    options = _arguments(argv)
    begun = time.monotonic()
    progress = Lines()
    model_folder, results_path = options.out / "model", options.out / "results.json"
    if options.finish is None:
        results = _make(options, model_folder, progress)
    else:
        results = json.loads(options.finish.read_text())
    results["seconds_total"] = round(time.monotonic() - begun, 1)
    _write_json(results_path, results)
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.to(options.device).eval()
    results["parameters"] = sum(p.numel() for p in model.parameters())
    progress("evaluate", 0, 1, {})
    results["evaluation"] = evaluate(model, tokenizer, options.corpus)
    _write_json(results_path, results)
    sampling = SampleOptions(
        options.sample_tokens,
        options.heldout_tokens,
        batch=options.sample_batch,
        seed=options.seed,
    )
    text = model_folder / "text"
    results["samples"] = write_samples(model, tokenizer, text, sampling, progress)
    results["samples"] |= write_arithmetic(tokenizer, text)
    results["seconds_total"] = round(time.monotonic() - begun, 1)
    _write_json(results_path, results)
    write_card(results, model_folder / "README.md")
    progress("done", 1, 1, {"seconds": results["seconds_total"], "out": str(options.out)})


def _make(options: argparse.Namespace, model_folder: Path, progress: Lines) -> dict[str, Any]:
    """Train the tokenizer and the model, export the best run; return what is known of it."""
    work = options.out / "work"
    files = corpus_files(options.corpus)
    tokenizer = _tokenizer(work / "tokenizer.json", files, progress)
    progress("encode the corpus", 0, 1, {})
    corpus = encode_corpus(tokenizer, files, work / "corpus.npz")
    heldout = heldout_windows(tokenizer, options.corpus / "eval" / "valid.txt.xz", CONTEXT)
    progress("encode the corpus", 1, 1, {"tokens": len(corpus.ids)})
    config = reference_config()
    settings = {
        tokens: TrainOptions(
            tokens, batch=options.batch, rows_at_once=options.rows_at_once, seed=options.seed
        )
        for tokens in options.tokens
    }
    results: dict[str, Any] = {
        "seed": options.seed,
        "commit": options.commit or _commit(),
        "hardware": _hardware(options.device),
        "precision": "bf16 autocast" if options.device.startswith("cuda") else "fp32",
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "config": config.to_diff_dict(),
        "corpus": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
        "unique_tokens": len(corpus.ids),
        "tokens_per_pass": corpus.tokens_per_pass,
    }

    def run(tokens: int) -> TrainResult:
        return train(
            config,
            corpus,
            heldout,
            settings[tokens],
            work / f"tokens-{tokens}",
            options.device,
            options.compile,
            progress=progress,
        )

    def keep(tokens: int, result: TrainResult, runs: list[dict[str, Any]]) -> None:
        results["runs"] = runs
        results["training"] = asdict(settings[tokens])
        results["weights_sha256"] = export(config, result.weights, tokenizer, model_folder)
        _write_json(options.out / "results.json", results)

    choice = choose_budget(options.tokens, run, keep, options.seconds_limit)
    results["runs"] = choice.runs
    return results


def _tokenizer(path: Path, files: Sequence[Path], progress: Lines) -> Tokenizer:
    if path.is_file():
        return Tokenizer.from_file(str(path))
    progress("train the tokenizer", 0, 1, {})
    texts = (text for file in files for text in train_documents(file))
    tokenizer = train_tokenizer(texts, VOCABULARY)
    write_atomically(path, tokenizer.to_str().encode())
    progress("train the tokenizer", 1, 1, {"tokens": tokenizer.get_vocab_size()})
    return tokenizer


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.reference", description=__doc__)
    add = parser.add_argument
    add("--corpus", type=Path, default=Path("corpus"), help="folder with train/ and eval/")
    add("--out", type=Path, default=Path("out/reference"))
    add("--device", default="cpu", help="cpu or cuda")
    add(
        "--tokens",
        type=lambda text: [count(part) for part in text.split(",")],
        default=[300_000_000, 450_000_000],
        help="schedules to try, shortest first, while the held-out loss falls (300M,450M)",
    )
    add("--seed", type=int, default=0)
    add("--batch", type=int, default=256, help="windows a step")
    add("--rows-at-once", type=int, help="windows in memory together (all; on a CPU 8)")
    add("--compile", action="store_true", help="compile the layers (CUDA)")
    add("--seconds-limit", type=float, help="start no further schedule that would end later")
    add("--sample-tokens", type=count, default=SampleOptions.calibration_tokens)
    add("--heldout-tokens", type=count, default=SampleOptions.heldout_tokens)
    add("--sample-batch", type=int, default=SampleOptions.batch, help="texts sampled at once")
    add("--commit", help="the repository's commit, where git is not at hand")
    add("--finish", type=Path, metavar="RESULTS", help="evaluate and sample OUT/model only")
    options = parser.parse_args(argv)
    if options.rows_at_once is None:
        options.rows_at_once = options.batch if options.device.startswith("cuda") else 8
    return options


if __name__ == "__main__":
    # The tokenizers' threads outlive a fork; nothing here forks after using them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
