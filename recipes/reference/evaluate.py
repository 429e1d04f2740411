"""What the model card says of the model: perplexities and arithmetic, all in fp32."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from .data import heldout_windows
from .documents import SEPARATOR

_ANSWER_TOKENS = 12


@torch.inference_mode()
def perplexity(model: Any, windows: npt.NDArray[np.uint16], batch: int = 16) -> float:
    """Return exp of the mean fp32 loss over windows that do not overlap, [windows, length].

    The first token of a window is not predicted: each window counts its ``length - 1`` targets.
    """
    total = 0.0
    for part in torch.from_numpy(windows.astype(np.int64)).to(model.device).split(batch):
        logits = model(input_ids=part[:, :-1], use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none"
        )
        total += float(loss.double().sum())
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def detokenise(text: str) -> str:
    """Undo WikiText's spaced punctuation; ``<unk>`` stays."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    text = re.sub(r" ([.,;:!?%)\]}])", r"\1", text)
    text = re.sub(r"([(\[{$£€#]) ", r"\1", text)
    text = re.sub(r" ('(?:s|re|ve|d|m|ll|t)\b)", r"\1", text)
    text = re.sub(r" n't\b", "n't", text)
    return re.sub(r" ' ?(?=\s)", "'", text)


def wikitext_windows(
    tokenizer: Tokenizer, path: Path, length: int, detokenised: bool
) -> npt.NDArray[np.uint16]:
    """Return WikiText as [windows, length]: lines joined by blank lines, the tail dropped."""
    lines = lzma.decompress(path.read_bytes()).decode().splitlines()
    text = "\n\n".join(line.strip() for line in lines if line.strip())
    ids = np.array(tokenizer.encode(detokenise(text) if detokenised else text).ids, np.uint16)
    count = len(ids) // length
    return ids[: count * length].reshape(count, length)


@torch.inference_mode()
def greedy(model: Any, prompts: torch.Tensor, end: int, tokens: int) -> list[list[int]]:
    """Continue prompts of one length greedily, int64 [rows, length]; rows end before `end`."""
    rows = prompts
    for _ in range(tokens):
        logits = model(input_ids=rows, use_cache=False, logits_to_keep=1).logits
        rows = torch.cat([rows, logits[:, -1].argmax(-1, keepdim=True)], 1)
    continued = rows[:, prompts.shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in continued]


def arithmetic(model: Any, tokenizer: Tokenizer, path: Path, batch: int = 256) -> dict[str, Any]:
    """Return the share of problems whose greedy answer is right to the letter.

    Prompts are preceded by ``<|endoftext|>``, as the tokenizer does it. An answer ends at
    ``<|endoftext|>`` or a line end.
    """
    problems = [json.loads(line) for line in path.read_text().splitlines()]
    groups: dict[int, list[tuple[list[int], dict[str, Any]]]] = defaultdict(list)
    for problem in problems:
        ids = tokenizer.encode(problem["prompt"]).ids
        groups[len(ids)].append((ids, problem))
    right: dict[str, list[bool]] = defaultdict(list)
    end = tokenizer.token_to_id(SEPARATOR)
    for _, group in sorted(groups.items()):
        for at in range(0, len(group), batch):
            part = group[at : at + batch]
            prompts = torch.tensor([ids for ids, _ in part], device=model.device)
            for row, (_, problem) in zip(
                greedy(model, prompts, end, _ANSWER_TOKENS), part, strict=True
            ):
                answer = tokenizer.decode(row).split("\n")[0].strip()
                right[problem["op"]].append(answer == problem["answer"])
    scores = {op: sum(hits) / len(hits) for op, hits in sorted(right.items())}
    hits = [hit for part in right.values() for hit in part]
    return {"n": len(hits), "accuracy": sum(hits) / len(hits), "by_operation": scores}


def evaluate(model: Any, tokenizer: Tokenizer, corpus: Path) -> dict[str, Any]:
    """Measure a model in fp32 on the corpus' ``eval/``; every figure names its n and its file."""
    length = model.config.max_position_embeddings
    folder = corpus / "eval"
    results: dict[str, Any] = {"dtype": "float32", "window": length}
    valid = folder / "valid.txt.xz"
    windows = heldout_windows(tokenizer, valid, length)
    results["heldout"] = _entry(valid, len(windows), perplexity(model, windows))
    wikitext = folder / "wikitext2_test.txt.xz"
    if wikitext.is_file():
        for name, clean in (("wikitext2_test_detokenised", True), ("wikitext2_test", False)):
            windows = wikitext_windows(tokenizer, wikitext, length, clean)
            results[name] = _entry(wikitext, len(windows), perplexity(model, windows))
    problems = folder / "arith_test.jsonl"
    results["arithmetic"] = arithmetic(model, tokenizer, problems) | {
        "file": problems.name,
        "sha256": hashlib.sha256(problems.read_bytes()).hexdigest(),
    }
    return results


def _entry(path: Path, windows: int, value: float) -> dict[str, Any]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"perplexity": value, "windows": windows, "file": path.name, "sha256": digest}
