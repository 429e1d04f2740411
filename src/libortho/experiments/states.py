"""One way in, measured in every state of its gate: α = 0, repair open, everything open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from libortho import gate, ops
from libortho.evaluate.digest import Digest, differences, digest
from libortho.evaluate.inputs import Inputs
from libortho.evaluate.perplexity import token_nll
from libortho.evaluate.tolerance import log_prob_tolerance
from libortho.model import CallRegion, call_region, linears, load
from libortho.privacy.encode import Encoded
from libortho.privacy.score import Score, score
from libortho.progress import Progress, silent
from libortho.streams.base import BaseStream
from libortho.streams.ortho import OrthoStream

REGION = "evaluation"


@dataclass(frozen=True)
class Way:
    """A directory that some way in produced.

    Attributes:
        name: ``tune``, ``delta`` or ``residual``.
        path: base and streams.
        states: the gate's setting per state, such as ``{"alpha0": 0.0}``; ``alpha0`` and
            ``alpha1`` always, ``repair`` where there is a repair stream.
        guarantee: ``exact`` or ``measured``.
        stands_for: the model in floating point that α = 1 stands for.
    """

    name: str
    path: Path
    streams: tuple[str, ...]
    states: Mapping[str, gate.Setting]
    guarantee: str
    stands_for: Path


@dataclass
class Measured:
    """Scores of one way.

    Attributes:
        scores: per state, (members, controls).
        nll: per state and text, per-token NLL [n, T - 1].
        solved: per state, which problems of arithmetic were answered.
        unlike: batches whose logits at α = 0 are not those of the base without any stream.
        calls: native calls of the whole evaluation against the expected ones.
        tolerance: largest |Δ log p| that rounding explains at α = 0, in nats.
    """

    scores: dict[str, tuple[list[Score], list[Score]]] = field(default_factory=dict)
    nll: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    solved: dict[str, list[bool]] = field(default_factory=dict)
    unlike: tuple[str, ...] = ()
    calls: CallRegion = field(default_factory=lambda: CallRegion(REGION))
    tolerance: float = 0.0

    def recall(self, state: str) -> float:
        """Share of the members that are recited in a state."""
        members, _ = self.scores[state]
        return fmean(one.exact for one in members)


def measure(
    way: Way,
    inputs: Inputs,
    members: Sequence[Encoded],
    controls: Sequence[Encoded],
    untouched: Digest,
    *,
    problems: Sequence[Encoded],
    texts: Mapping[str, Mapping[str, Tensor]],
    progress: Progress = silent,
) -> Measured:
    """Evaluate a way on the CPU, by the native kernel where there is one.

    Args:
        inputs: what ``untouched`` was taken on.
        untouched: digest of the same base by a process that never opened a stream.
        problems: of arithmetic, with their answers as completions.
        texts: per state beyond ``alpha0``, the windows to measure perplexity on, by text.
    """
    model = load(way.path, way.streams)
    result = Measured()
    with call_region(model, REGION) as region:
        with gate.alpha(way.states["alpha0"]):
            ours = digest(model, inputs, stage=f"{way.name}: α=0", progress=progress)
            result.tolerance = _tolerance(model, next(iter(inputs.windows.values())))
        result.unlike = differences(ours, untouched)
        result.nll["alpha0"] = {name: ours.nll[f"windows.{name}"] for name in inputs.windows}
        for state, setting in way.states.items():
            with gate.alpha(setting):
                stage = f"{way.name}: {state}"
                result.scores[state] = (
                    score(model, members, stage=stage, progress=progress),
                    score(model, controls, stage=stage, progress=progress),
                )
                asked = score(model, problems, stage=f"{stage}: arithmetic", progress=progress)
                result.solved[state] = [one.exact for one in asked]
                if state != "alpha0":
                    result.nll[state] = {
                        name: token_nll(model, windows, stage=f"{stage} {name}", progress=progress)
                        for name, windows in texts[state].items()
                    }
    result.calls = region
    return result


def _tolerance(model: Any, windows: Tensor) -> float:
    captured: list[Tensor] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    try:
        model(input_ids=windows[:1])
    finally:
        handle.remove()
    shapes = {name: module.base.shape for name, module in linears(model).items()}
    shapes["head"] = tuple(head.weight.shape)
    return log_prob_tolerance(shapes, captured[0], head.weight)


def backend_name() -> str:
    """``native …`` or ``reference``, as records give it."""
    backend = ops.backend()
    return f"native {backend.isa}" if backend.name == "native" else backend.name


def bits_per_weight(base: BaseStream, stream_bytes: int) -> float:
    """Bits on disk per converted weight: INT4 codes, scales and the streams given."""
    weights = sum(n * k for n, k in base.layers.values())
    stored = sum(tensor.nbytes for name in base.layers for tensor in base.packed(name))
    return 8 * (stored + stream_bytes) / weights


def checkpoint_bytes(path: Path) -> int:
    """Bytes of the weights of a checkpoint directory, streams not included."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def stream_bytes(stream: OrthoStream) -> int:
    """Bytes of a stream's tensors on disk."""
    return sum((stream.path / file).stat().st_size for file in stream.manifest.files)
