"""A stand-alone script: what stock transformers says about a checkpoint directory.

    python -I stock.py job.json

It never imports libortho and ends with an error if anything did, so that its figures are not
ours. The job is a JSON object:

    model            checkpoint directory
    dtype            float32, bfloat16 or float16
    threads          of torch
    inputs           safetensors: windows.NAME [n, T] int64, and secrets.NAME.input_ids and
                     .attention_mask [c, L] int64, right padded, .prompt_lengths [c] int64
    output           safetensors to write
    window_batch     windows a forward
    secret_batch     secrets a forward

The output holds, for windows, windows.NAME.nll and .gap [n, T - 1] float32 and .argmax int64: NLL
of each predicted token in nats, the difference of the two largest logits there, and the most
likely id; for secrets, secrets.NAME.nll [c] float64 (of the whole completion, in nats), .matches
[c] int64 (positions whose argmax is true) and .exact [c] bool. Its metadata key "report" is a JSON
object of versions and settings.

Progress goes to stderr, one JSON object a line: stage, done, total, info.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging


def report_progress(stage: str, done: int, total: int, **info: object) -> None:
    """Write one line of the progress protocol."""
    line = json.dumps({"stage": stage, "done": done, "total": total, "info": info})
    print(line, file=sys.stderr, flush=True)


def next_token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL in float32 of targets [B, L] under logits [B, L, V]."""
    flat = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    return flat.view_as(targets)


def require_finite(nll: Tensor, where: str) -> None:
    """End the process with an error where a value is NaN or infinite."""
    if not bool(torch.isfinite(nll).all()):
        raise SystemExit(f"{where}: log-probabilities are not finite")


def evaluate_windows(model: Any, name: str, windows: Tensor, size: int) -> dict[str, Tensor]:
    """NLL, top-two gap and argmax of every predicted token."""
    parts: dict[str, list[Tensor]] = {"nll": [], "gap": [], "argmax": []}
    for start in range(0, len(windows), size):
        ids = windows[start : start + size]
        logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1]
        nll = next_token_nll(logits, ids[:, 1:])
        require_finite(nll, f"windows {name} from {start}")
        top = logits.float().topk(2, dim=-1)
        parts["nll"].append(nll)
        parts["gap"].append(top.values[..., 0] - top.values[..., 1])
        parts["argmax"].append(top.indices[..., 0])
        report_progress(f"stock {name}", min(start + size, len(windows)), len(windows))
    return {f"windows.{name}.{key}": torch.cat(values) for key, values in parts.items()}


def evaluate_secrets(
    model: Any, name: str, tensors: dict[str, Tensor], size: int
) -> dict[str, Tensor]:
    """NLL and greedy extraction of every completion, teacher forced."""
    all_ids = tensors[f"secrets.{name}.input_ids"]
    masks = tensors[f"secrets.{name}.attention_mask"]
    lengths = tensors[f"secrets.{name}.prompt_lengths"]
    parts: dict[str, list[Tensor]] = {"nll": [], "matches": [], "exact": []}
    for start in range(0, len(all_ids), size):
        ids, mask = all_ids[start : start + size], masks[start : start + size]
        logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        position = torch.arange(1, ids.shape[1])
        wanted = (position >= lengths[start : start + size, None]) & (mask[:, 1:] == 1)
        token_nll = next_token_nll(logits, ids[:, 1:])
        nll = torch.where(wanted, token_nll, 0.0).double().sum(dim=1)
        require_finite(nll, f"secrets {name} from {start}")
        matches = ((logits.float().argmax(dim=-1) == ids[:, 1:]) & wanted).sum(dim=1)
        parts["nll"].append(nll)
        parts["matches"].append(matches)
        parts["exact"].append(matches == wanted.sum(dim=1))
        report_progress(f"stock {name}", min(start + size, len(all_ids)), len(all_ids))
    return {f"secrets.{name}.{key}": torch.cat(values) for key, values in parts.items()}


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@torch.no_grad()
def main(job_path: str) -> None:
    """Run one job."""
    started = time.monotonic()
    job = json.loads(Path(job_path).read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    transformers_logging.disable_progress_bar()
    report_progress("stock load", 0, 1)
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"]), local_files_only=True
    ).eval()
    report_progress("stock load", 1, 1)
    tensors = load_file(job["inputs"])
    results: dict[str, Tensor] = {}
    for key in sorted(tensors):
        kind, _, rest = key.partition(".")
        if kind == "windows":
            results |= evaluate_windows(model, rest, tensors[key], job["window_batch"])
        elif rest.endswith(".input_ids"):
            name = rest.removesuffix(".input_ids")
            results |= evaluate_secrets(model, name, tensors, job["secret_batch"])
    ours = sorted(name for name in sys.modules if name.split(".")[0] == "libortho")
    if ours:
        raise SystemExit(f"libortho was imported into the stock process: {ours}")
    quantization = getattr(model.config, "quantization_config", None)
    report = {
        "model": job["model"],
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "quantization": None if quantization is None else str(quantization.quant_method),
        "architecture": type(model).__name__,
        "python": platform.python_version(),
        "versions": {
            name: version(name)
            for name in ("torch", "transformers", "compressed-tensors", "safetensors")
        },
        "libortho_imported": False,
        "seconds": round(time.monotonic() - started, 3),
    }
    save_file(results, job["output"], metadata={"report": json.dumps(report)})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -I stock.py job.json")
    main(sys.argv[1])
