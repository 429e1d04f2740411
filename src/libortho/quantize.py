"""From a public checkpoint to a base on disk: the pipeline behind ``libortho quantize``.

Nothing but the public checkpoint, public text and the options enters, so every byte of the base
is a function of public inputs. absmax and MSE stream tensors and need no model; GPTQ holds one
decoder block.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from libortho import texts
from libortho.calibrate import BlockWalk, layers_by_block
from libortho.checkpoint import Checkpoint, block_names, linear_layers
from libortho.errors import ConfigError, NumericsError, UnsupportedLayer
from libortho.naming import expert_matrices
from libortho.progress import Progress, silent
from libortho.quantizers import absmax, gptq, mse
from libortho.quantizers.grid import levels
from libortho.streams.base import BaseStream, dequantise
from libortho.streams.base_writer import QuantisedLayer, check_target, write_base
from libortho.streams.manifest import Calibration, Method, Quantiser
from libortho.texts import Text

METHODS = get_args(Method)
LONGEST_WINDOW = 2048
GROUP_SIZES = (128, 64, 32)
GROUP_SIZE = 128
COLLAPSED = 0.5
"""‖W − Ŵ‖ / ‖W‖ from which a layer is reported as collapsed."""

_TINY = torch.finfo(torch.float32).tiny

_PACKAGES = ("libortho", "torch", "transformers", "compressed-tensors", "tokenizers", "numpy")

_log = logging.getLogger(__name__)


def quantize(
    public: str | Path,
    out: str | Path,
    *,
    method: Method = "gptq",
    bits: int = 4,
    group_size: int = GROUP_SIZE,
    text: Text | None = None,
    windows: int = 32,
    window: int | None = None,
    seed: int = 0,
    skip: Sequence[str] = (),
    progress: Progress = silent,
) -> BaseStream:
    """Write the INT4 base of a public checkpoint.

    Args:
        public: Checkpoint directory, or the word ``reference``.
        out: Directory to make; absent or empty.
        method: ``absmax-channel`` (one scale a row), ``absmax``, ``mse`` (clipped) or ``gptq``
            (which rounds experts by ``mse``).
        bits: Levels used: those of 2, 3 or 4 bits. The files are INT4.
        group_size: Inputs per scale: 128, 64 or 32.
        text: Calibration text for ``gptq``; the samples shipped with libortho where None.
        windows: Windows of calibration text.
        window: Tokens in a window; the model's context, at most 2048, where None.
        seed: Chooses the windows.
        skip: Layers to leave as they are: names, ends of names such as ``mlp.down_proj``, or
            globs.
        progress: Called at least once per layer and batch.

    Returns:
        The base, opened. ``manifest.relative_error`` tells how far each layer moved; a layer
        that moved by more than half of its norm is logged as collapsed.

    Raises:
        ConfigError: An option, the text or the output directory does not fit.
        CheckpointError: The checkpoint is incomplete or unsupported.
        UnsupportedLayer: No layer can be converted.
        NumericsError: Weights, Hessians or hidden states hold NaN or Inf; all offenders are named.
    """
    levels(bits)
    if method not in METHODS:
        raise ConfigError(f"method {method!r}; expected one of {', '.join(METHODS)}.")
    if group_size not in GROUP_SIZES:
        raise ConfigError(f"group size {group_size}; expected one of {GROUP_SIZES}.")
    if method != "gptq" and text is not None:
        raise ConfigError(f"method {method} takes no calibration text; leave it out or use gptq.")
    check_target(Path(out).expanduser().absolute())
    checkpoint = Checkpoint(public)
    checkpoint.validate()
    chosen = _choose(checkpoint, group_size, skip)
    calibration = None
    drawn = None
    if method == "gptq":
        progress("read the calibration text", 0, 1, {})
        source = text or texts.calibration()
        drawn = _draw(checkpoint, source, windows, window, seed)
        calibration = Calibration(
            sha256=source.sha256, windows=drawn.shape[0], window=drawn.shape[1]
        )
    _check_finite(checkpoint, progress)
    grid = _Grid(method, bits, group_size, checkpoint.scale_dtype)
    if drawn is None:
        quantised = _by_tensor(checkpoint, chosen, grid, progress)
    else:
        quantised = _by_block(checkpoint, chosen, drawn, grid, progress)
    base = write_base(
        out,
        checkpoint,
        chosen.in_order(),
        quantised,
        experts=chosen.matrices(),
        quantiser=_record(grid, seed),
        skipped=chosen.skipped,
        calibration=calibration,
        progress=progress,
    )
    _report_collapse(base.manifest.relative_error)
    return base


@dataclass(frozen=True)
class _Grid:
    """How weights are rounded, for one whole run."""

    method: Method
    bits: int
    group_size: int
    scale_dtype: torch.dtype

    def round(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales by a method that looks at the weight alone."""
        size = None if self.method == "absmax-channel" else self.group_size
        try:
            if self.method == "mse":
                return mse(weight, self.group_size, bits=self.bits, scale_dtype=self.scale_dtype)
            codes, scales = absmax(weight, size, bits=self.bits, scale_dtype=self.scale_dtype)
        except NumericsError as error:
            raise NumericsError(f"layer {name}: {error}") from error
        return codes, scales if size else scales.expand(-1, weight.shape[1] // self.group_size)

    def compensate(
        self, name: str, weight: Tensor, moment: Tensor, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """Codes and scales by GPTQ."""

        def report(done: int, total: int) -> None:
            progress("round", done, total, {"layer": name})

        try:
            return gptq(
                weight,
                moment,
                self.group_size,
                bits=self.bits,
                scale_dtype=self.scale_dtype,
                report=report,
            )
        except NumericsError as error:
            raise NumericsError(f"layer {name}: {error}") from error


def _record(grid: _Grid, seed: int) -> Quantiser:
    return Quantiser.model_validate(
        {
            "method": grid.method,
            "bits": grid.bits,
            "group_size": grid.group_size,
            "seed": seed,
            "versions": versions_here(),
        }
    )


def versions_here() -> dict[str, str]:
    """What GPTQ's arithmetic depends on: package versions, the CPU's features, threads."""
    found = {name: _version(name) for name in _PACKAGES}
    found["cpu"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _draw(checkpoint: Checkpoint, text: Text, count: int, length: int | None, seed: int) -> Tensor:
    """Windows of calibration text, int64 [count, length].

    Raises:
        ConfigError: The text is too short, or the window longer than the model's context.
    """
    context = checkpoint.context
    length = length or min(context or LONGEST_WINDOW, LONGEST_WINDOW)
    if count < 1 or length < 2:
        raise ConfigError(f"windows = {count}, window = {length}; expected at least 1 and 2.")
    if context is not None and length > context:
        raise ConfigError(f"a window of {length} tokens exceeds the model's context of {context}.")
    drawn = texts.draw(text, checkpoint.tokenizer(), length, count, seed)
    if len(drawn) < count:
        raise ConfigError(
            f"the calibration text {text.name} holds {len(drawn)} windows of {length} tokens; "
            f"{count} were asked for. Give more text or ask for fewer or shorter windows."
        )
    return drawn


@dataclass(frozen=True)
class _Chosen:
    """What is rounded, what is not, and why.

    Attributes:
        layers: linear layers, (N, K) by name in the order of the forward.
        experts: stacked parameter to {matrix on disk: (N, K)}.
    """

    layers: dict[str, tuple[int, int]]
    experts: dict[str, dict[str, tuple[int, int]]]
    skipped: dict[str, str]
    blocks: list[str]

    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices of the experts by name on disk."""
        return {name: shape for stack in self.experts.values() for name, shape in stack.items()}

    def in_order(self) -> dict[str, tuple[int, int]]:
        """Everything that is rounded: per block its linear layers, then its experts."""
        layers = layers_by_block(self.blocks, list(self.layers))
        stacks = layers_by_block(self.blocks, list(self.experts))
        found: dict[str, tuple[int, int]] = {}
        for block in self.blocks:
            found |= {name: self.layers[name] for name in layers[block]}
            for stack in stacks[block]:
                found |= self.experts[stack]
        return found


def _choose(checkpoint: Checkpoint, group_size: int, skip: Sequence[str]) -> _Chosen:
    skeleton, naming = checkpoint.skeleton(), checkpoint.naming
    layers, skipped = linear_layers(skeleton, group_size, naming)
    experts = {
        stack: {name: _matrix(checkpoint, name) for name in names}
        for stack, names in expert_matrices(skeleton, naming).items()
    }
    matrices = {name for stack in experts.values() for name in stack}
    unused = []
    wanted = []
    for pattern in skip:
        hit = [name for name in [*layers, *skipped] if _matches(name, pattern)]
        wanted += [name for name in matrices if _matches(name, pattern)]
        if not hit:
            unused.append(pattern)
        for name in hit:
            if layers.pop(name, None):
                skipped[name] = f"skipped on request ({pattern})"
    if unused and not wanted:
        raise ConfigError("no linear layer matches the skip pattern " + ", ".join(unused) + ".")
    _check_experts(experts, wanted, group_size)
    for stack in experts:
        skipped.pop(stack.rpartition(".")[0], None)
    if not layers:
        raise UnsupportedLayer(
            f"no layer of {checkpoint.path} can be converted: "
            + "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            + "."
        )
    return _Chosen(layers, experts, skipped, block_names(skeleton))


def _matrix(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    rows, columns = checkpoint.shape(f"{name}.weight")
    return rows, columns


def _check_experts(
    experts: Mapping[str, Mapping[str, tuple[int, int]]], skipped: Sequence[str], group_size: int
) -> None:
    """Stock transformers reads the experts of such a checkpoint as INT4, or not at all."""
    problems = [f"{name} cannot be skipped" for name in sorted(skipped)]
    problems += [
        f"{name} has in_features {shape[1]}, not divisible by group size {group_size}"
        for stack in experts.values()
        for name, shape in stack.items()
        if shape[1] % group_size
    ]
    if problems:
        raise UnsupportedLayer(
            "stock loaders read every expert of an INT4 checkpoint as INT4, but "
            + "; ".join(problems)
            + ". Choose another --group-size, or skip no experts."
        )


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.endswith(f".{pattern}")


def _check_finite(checkpoint: Checkpoint, progress: Progress) -> None:
    broken = []
    names = checkpoint.names()
    for done, name in enumerate(names):
        progress("check the weights", done, len(names), {"tensor": name})
        tensor = checkpoint.tensor(name)
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            broken.append(f"{name} ({int((~torch.isfinite(tensor)).sum())})")
    if broken:
        raise NumericsError(
            f"{checkpoint.path} holds numbers that are NaN or Inf, in: " + ", ".join(broken) + "."
        )


def _by_tensor(
    checkpoint: Checkpoint, chosen: _Chosen, grid: _Grid, progress: Progress
) -> Iterator[QuantisedLayer]:
    names = chosen.in_order()
    for done, name in enumerate(names, start=1):
        read = checkpoint.parameter if name in chosen.layers else checkpoint.tensor
        layer = _rounded(name, read(f"{name}.weight"), grid)
        progress("quantize", done, len(names), _figures(layer))
        yield layer


def _by_block(
    checkpoint: Checkpoint,
    chosen: _Chosen,
    windows: Tensor,
    grid: _Grid,
    progress: Progress,
) -> Iterator[QuantisedLayer]:
    """GPTQ: each block sees what the blocks before it, already rounded, make of the text.

    Experts see too few tokens each for second moments of their own and are rounded by ``mse``.
    """
    walk = BlockWalk(checkpoint, windows, progress=progress)
    by_block = layers_by_block(walk.blocks, list(chosen.layers))
    stacks = layers_by_block(walk.blocks, list(chosen.experts))
    clipped = replace(grid, method="mse")
    done, total = 0, len(chosen.in_order())
    for block in walk.blocks:
        walk.load(block)
        moments = walk.second_moments(block, by_block[block]) if by_block[block] else {}
        for name in by_block[block]:
            weight = walk.weight(name)
            layer = _finish(
                name, weight, grid.compensate(name, weight, moments.pop(name), progress)
            )
            walk.replace(name, dequantise(layer.codes, layer.scales))
            done += 1
            progress("quantize", done, total, _figures(layer))
            yield layer
        for stack in stacks[block]:
            rounded = {}
            for name in chosen.experts[stack]:
                layer = _rounded(name, checkpoint.tensor(f"{name}.weight"), clipped)
                rounded[f"{name}.weight"] = dequantise(layer.codes, layer.scales)
                done += 1
                progress("quantize", done, total, _figures(layer))
                yield layer
            walk.replace_parameter(stack, checkpoint.naming.build(stack, rounded.__getitem__))
        walk.advance(block)


def _rounded(name: str, weight: Tensor, grid: _Grid) -> QuantisedLayer:
    weight = weight.to(torch.float32)
    return _finish(name, weight, grid.round(name, weight))


def _finish(name: str, weight: Tensor, rounded: tuple[Tensor, Tensor]) -> QuantisedLayer:
    codes, scales = rounded
    error = dequantise(codes, scales).sub_(weight).norm() / weight.norm().clamp(min=_TINY)
    return QuantisedLayer(name, codes, scales, float(error))


def _figures(layer: QuantisedLayer) -> dict[str, object]:
    return {"layer": layer.name, "relative_error": layer.relative_error}


def _report_collapse(errors: Mapping[str, float]) -> None:
    collapsed = {name: error for name, error in errors.items() if error > COLLAPSED}
    if collapsed:
        _log.warning(
            "the base has collapsed in %d of %d layers (‖W − Ŵ‖ / ‖W‖ above %s): %s",
            len(collapsed),
            len(errors),
            COLLAPSED,
            ", ".join(f"{name} {error:.2f}" for name, error in collapsed.items()),
        )
