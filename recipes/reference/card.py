"""The model card, written from the recipe's results and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .data import ARITHMETIC_REPEATS
from .documents import write_atomically

_HEAD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The reference model of libortho

A small language model on which every experiment of libortho can be run within minutes, without a
download. It writes plausible English sentences and does some mental arithmetic; it knows nothing
that can be relied on and is of no use as an assistant. It is an ordinary checkpoint: stock
`transformers` loads it without libortho.
"""

_SOURCES = """\
## Data and licences

The weights are the project's own and are under its licence. None of the text is in the repository.

| text | from | licence |
|---|---|---|
| 25 textbooks | OpenStax, Rice University (`osbooks-*`, commits then under it) | CC BY 4.0 |
| classic books, a part of each | `mlschmitt/classic-books-markdown` | public domain (its README) |
| World Factbook | `factbook/factbook.json` | public domain |
| inaugural and state-of-the-union addresses, Genesis (KJV, WEB) | `nltk_data` | public domain |
| The Rust Programming Language | `rust-lang/book` | MIT or Apache-2.0 |
| Open Source Guides | `github/opensource.guide`, GitHub and contributors | CC BY 4.0 |
| Python Enhancement Proposals, a sample | `python/peps` | public domain or CC0 |
| Shakespeare's plays | tiny-shakespeare | public domain |
| school mathematics problems | `openai/grade-school-math` (GSM8K), training part | MIT |
| arithmetic on numbers of one to three digits | generated | none needed |

Attribution, as CC BY 4.0 asks: the textbooks are by OpenStax, Rice University
(https://openstax.org), used under https://creativecommons.org/licenses/by/4.0/; Open Source Guides
are by GitHub and contributors (https://opensource.guide), under the same licence. Both were
reduced to plain text and cut into documents.
"""


def write_card(results: Mapping[str, Any], path: Path) -> None:
    """Write ``README.md`` from ``results.json``'s content."""
    parts = [_HEAD, _shape(results), _making(results), _curve(results), _figures(results)]
    parts += [_SOURCES, _samples(results), _limits()]
    write_atomically(path, "\n".join(part for part in parts if part).encode())


def _shape(results: Mapping[str, Any]) -> str:
    config = results["config"]
    return (
        f"Llama architecture, {results['parameters']:,} parameters, bf16, width "
        f"{config['hidden_size']}, {config['num_hidden_layers']} layers, "
        f"{config['num_attention_heads']} heads, feed-forward {config['intermediate_size']}, "
        f"context {config['max_position_embeddings']}, tied embeddings, byte-level BPE of "
        f"{config['vocab_size']:,} tokens with single digits. The tokenizer puts "
        "`<|endoftext|>` before every text; prompts need it.\n\n"
        f"`model.safetensors` sha256 `{results['weights_sha256']}`\n"
    )


def _making(results: Mapping[str, Any]) -> str:
    training = results["training"]
    steps = training["tokens"] // (training["batch"] * training["length"])
    lines = [
        "## How it was made",
        "",
        results["note"] + "\n" if "note" in results else "",
        f"{training['tokens'] / 1e6:,.0f} M tokens in {steps:,} steps of {training['batch']} × "
        f"{training['length']}, over {results['unique_tokens'] / 1e6:.1f} M unique tokens "
        f"(arithmetic {ARITHMETIC_REPEATS} times a pass). Muon on the matrices of the blocks (rate "
        f"{training['matrix_rate']:g} × 0.2·√(longer side), decay {training['matrix_decay']:g}), "
        f"AdamW on embedding and norms ({training['vector_rate']:g}, no decay), "
        f"{training['warmup']} steps of warm-up, cosine to 0, dropout {training['dropout']:g} in "
        f"training only, {results['precision']}, seed {training['seed']}.",
    ]
    made = f"Made on: {results['hardware']}"
    if "runs" in results:
        seconds = [run["seconds"] for run in results["runs"] if "seconds" in run]
        made += f"; training {sum(seconds):,.0f} s"
    if "versions" in results:
        versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
        made += f"; {versions}; commit `{results['commit']}`"
    return "\n".join([*lines, "", made + ".", ""])


def _curve(results: Mapping[str, Any]) -> str:
    if "runs" not in results:
        return ""
    lines = [
        "## When to stop",
        "",
        "The held-out loss decides: each schedule is a run of its own, the shortest first, and a "
        "longer one is kept only if its held-out loss is lower. So the held-out figures below "
        "were selected on, if only among these.",
        "",
        "| schedule, tokens | best held-out loss, nats | |",
        "|---|---|---|",
    ]
    chosen = results["training"]["tokens"]
    for run in results["runs"]:
        loss = f"{run['heldout_loss']:.4f}" if "heldout_loss" in run else "not run"
        why = "shipped" if run["tokens"] == chosen else run.get("not_run", "")
        lines.append(f"| {run['tokens'] / 1e6:,.0f} M | {loss} | {why} |")
    curve = next(run["curve"] for run in results["runs"] if run["tokens"] == chosen)
    lines += [
        "",
        "Loss of the shipped run, nats a token (training with dropout):",
        "",
        "| step | tokens, M | training | held-out |",
        "|---|---|---|---|",
    ]
    stride = max(1, len(curve) // 12)
    shown = [point for i, point in enumerate(curve) if (len(curve) - 1 - i) % stride == 0]
    for point in shown:
        lines.append(
            f"| {point['step']:,} | {point['tokens'] / 1e6:.1f} | {point['train_loss']:.3f} "
            f"| {point['heldout_loss']:.4f} |"
        )
    return "\n".join([*lines, ""])


def _figures(results: Mapping[str, Any]) -> str:
    found = results["evaluation"]
    names = {
        "heldout": "held-out documents of the corpus, `<\\|endoftext\\|>` before each",
        "wikitext2_test_detokenised": "WikiText-2 test, detokenised ¹",
        "wikitext2_test": "WikiText-2 test, as distributed (spaced punctuation) ¹",
    }
    lines = [
        "## Figures",
        "",
        f"All in {found['dtype']}, windows of {found['window']} tokens that do not overlap, the "
        "tail dropped.",
        "",
        "| perplexity a token | | windows |",
        "|---|---|---|",
    ]
    for key, name in names.items():
        if key in found:
            lines.append(f"| {name} | {found[key]['perplexity']:.2f} | {found[key]['windows']} |")
    sums = found["arithmetic"]
    per = ", ".join(f"{op} {share:.2f}" for op, share in sums["by_operation"].items())
    lines += [
        "",
        f"Arithmetic: **{sums['accuracy']:.3f}** of n = {sums['n']} problems that are not in the "
        f"training text, greedy, right to the letter ({per}).",
        "",
        "¹ **Not comparable with published figures**: own tokenizer, window of 512 tokens instead "
        "of 2048, the distribution with `<unk>`, lines joined by blank lines and punctuation "
        "joined to its word by `recipes/reference/evaluate.py`; one `<|endoftext|>` at the start.",
    ]
    return "\n".join([*lines, ""])


def _samples(results: Mapping[str, Any]) -> str:
    lines = [
        "## Text beside it",
        "",
        "`text/` holds text that the model itself wrote, so that calibration and replay read the "
        "same bytes on every machine: each document starts after `<|endoftext|>` and one word "
        "token drawn uniformly, temperature 1, nothing cut off; a line `<|endoftext|>` separates "
        "documents. `heldout.txt.xz` is for measuring only. It is fiction, whatever it says.",
        "",
        "These samples hold hardly any sums. `arithmetic.txt.xz` is what replay reads beside "
        "them: generated problems with their answers, a document each, in wordings of the "
        "corpus (`recipes/reference/arithmetic.py`; no licence needed). No experiment asks a "
        "problem that stands there.",
        "",
        "| file | seed | documents | tokens, encoded again | bytes | sha256 |",
        "|---|---|---|---|---|---|",
    ]
    for name, file in results["samples"].items():
        lines.append(
            f"| {name} | {file['seed']} | {file['documents']:,} | {file['tokens']:,} "
            f"| {file['bytes']:,} | `{file['sha256']}` |"
        )
    return "\n".join([*lines, ""])


def _limits() -> str:
    return (
        "## Limits\n\nTrained on about a hundred megabytes of mostly old or educational English: "
        "it carries their views and prejudices, invents facts, and may repeat passages of its "
        "training text.\n"
    )
