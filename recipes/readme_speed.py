"""The line of the README on whole-model decode, from ``performance``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from libortho.records import Record

WORDS: Mapping[str, Mapping[str, str]] = {
    "README.md": {
        "line": "Decoding at batch 1 ([performance](docs/performance.md)): {machines}.",
        "machine": "{size} parameters on {device}{fused}, {speedup:.2f}x bf16 at α=0; α=1 with "
        "{density:g}% of the weights takes {open:.2f}x as long as α=0 ([record]({path}))",
        "fused": " (q/k/v and gate/up fused, in bf16 too)",
        "joint": ". ",
    },
    "README.zh-CN.md": {
        "line": "批大小为 1 的解码（[性能](docs/performance.md)）：{machines}。",
        "machine": "{device} 上 {size} 参数{fused}，α=0 时为 bf16 的 {speedup:.2f} 倍；α=1（权重的 "
        "{density:g}%）耗时为 α=0 的 {open:.2f} 倍（[记录]({path})）",
        "fused": "（q/k/v 与 gate/up 已合并，bf16 亦然）",
        "joint": "。",
    },
}


def line(found: Mapping[Path, Record], words: Mapping[str, str]) -> str:
    """One line over all machines; ``found`` by path from the repository's root."""
    machines = [
        words["machine"].format(
            size=f"{record.config['parameters'] / 1e9:.0f}B",
            device=record.hardware.gpu or f"{record.hardware.cores} × {record.hardware.cpu}",
            fused=words["fused"] if record.config.get("fused") else "",
            speedup=record.figures["speedup_alpha0_batch1"],
            density=100 * record.config["density"],
            open=record.figures["alpha1_over_alpha0_batch1"],
            path=path.as_posix(),
        )
        for path, record in found.items()
        if record.verdict != "VOID"
    ]
    return words["line"].format(machines=words["joint"].join(machines)) if machines else ""
