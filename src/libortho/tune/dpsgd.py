"""DP-SGD (Abadi et al. 2016, arXiv 1607.00133) on the values of one stream, over a frozen base.

Sampling, per-example gradients and the support are ours; clipping, noise and accounting are those
of Opacus. The support must not depend on private data (here it is drawn at random), nor may
anything else that is published, or the budget does not cover it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from libortho import gate
from libortho.errors import ConfigError, NumericsError
from libortho.linear import CsrStream, OrthoLinear
from libortho.model import linear, linears, stream_parts
from libortho.privacy.encode import Batch, Encoded, pad
from libortho.progress import Progress, silent
from libortho.streams.layers import CsrLayer, csr_from_dense

INSTALL = "pip install 'libortho[dp]'"
_MICROBATCH = 16


class DPOptions(BaseModel):
    """How a stream is trained under differential privacy; the unit is one example.

    Attributes:
        density: share of each matrix that the stream may hold, nnz / numel.
        steps: how many; the accountant counts every one.
        sample_rate: probability that an example takes part in a step (Poisson sampling).
        clip: largest L2 norm of one example's gradient.
        lr: of Adam, which sees noised gradients only.
        seed: of the support, the sampling and the noise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    density: float = Field(0.02, gt=0, le=1)
    steps: int = Field(100, ge=1)
    sample_rate: float = Field(0.5, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    lr: float = Field(3e-3, gt=0)
    seed: int = 0


@dataclass(frozen=True)
class Spent:
    """What a run cost.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm; 0 is no privacy.
        epsilon: by the accountant, at ``delta``; None where there was no noise.
        losses: mean loss over the examples of each step that had any, in nats a token. Private.
    """

    noise_multiplier: float
    epsilon: float | None
    delta: float
    losses: list[float]


def require_opacus() -> None:
    """Raise ConfigError, with the command that installs it, where Opacus is absent."""
    if find_spec("opacus") is None:
        raise ConfigError(f"differential privacy needs Opacus, which is not installed: {INSTALL}")


def random_supports(model: Any, density: float, seed: int) -> dict[str, CsrLayer]:
    """An all-zero CSR layer per converted linear, its support drawn at random: public."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in linears(model).items():
        size = module.in_features * module.out_features
        mask = torch.zeros(size, dtype=torch.bool)
        mask[torch.randperm(size, generator=generator)[: round(size * density)]] = True
        shaped = mask.view(module.out_features, module.in_features)
        found[name] = csr_from_dense(torch.zeros(shaped.shape), shaped)
    return found


def noise_for(epsilon: float, delta: float, options: DPOptions) -> float:
    """The noise multiplier that spends ``epsilon`` at ``delta`` over all steps."""
    require_opacus()
    from opacus.accountants.utils import get_noise_multiplier

    return float(
        get_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=delta,
            sample_rate=options.sample_rate,
            steps=options.steps,
            accountant="rdp",
        )
    )


def train_privately(
    model: Any,
    stream: str,
    private: Sequence[Encoded],
    options: DPOptions,
    *,
    noise_multiplier: float,
    delta: float,
    alpha: gate.Setting,
    progress: Progress = silent,
) -> Spent:
    """Train the values of the attached ``stream`` in place and round them as stored.

    The noise comes from a seeded generator, so that a run can be repeated; whoever releases a
    stream wants a seed that nobody knows.

    Args:
        private: the examples; the loss of one is the mean NLL of its completion's tokens.
        noise_multiplier: of the clipping norm; 0 trains without privacy, for comparison.
        delta: at which the accountant tells ε.
        alpha: the gate's setting while training.

    Raises:
        ConfigError: Opacus is absent, or the stream is not sparse.
        NumericsError: the loss is not finite.
    """
    require_opacus()
    from opacus.accountants import RDPAccountant
    from opacus.optimizers import DPOptimizer

    parts = sparse_parts(model, stream)
    parameters = {name: part.trainable()[0] for name, part in parts.items()}
    generator = torch.Generator(next(model.parameters()).device).manual_seed(options.seed + 1)
    drawing = torch.Generator().manual_seed(options.seed + 2)
    optimiser = DPOptimizer(
        torch.optim.Adam(parameters.values(), lr=options.lr),
        noise_multiplier=noise_multiplier,
        max_grad_norm=options.clip,
        # A constant, never the size of the sample, which would be private.
        expected_batch_size=max(1, round(options.sample_rate * len(private))),
        generator=generator,
    )
    accountant = RDPAccountant()
    optimiser.attach_step_hook(accountant.get_optimizer_hook_fn(options.sample_rate))
    supports = {name: support_of(part) for name, part in parts.items()}
    losses: list[float] = []
    for step in range(options.steps):
        taken = torch.rand(len(private), generator=drawing) < options.sample_rate
        chosen = taken.nonzero()[:, 0].tolist()
        optimiser.zero_grad()
        with gate.alpha(alpha):
            taught = [private[i] for i in chosen]
            loss = _set_grad_samples(model, parameters, supports, taught)
        if loss is not None and not math.isfinite(loss):
            raise NumericsError(f"DP-SGD: step {step + 1}: the loss is {loss}; lower lr")
        optimiser.step()
        losses += [] if loss is None else [loss]
        progress("DP-SGD", step + 1, options.steps, {} if loss is None else {"loss": loss})
    for name, part in parts.items():
        del parameters[name].grad_sample, parameters[name].summed_grad  # type: ignore[attr-defined]
        part.freeze()
    epsilon = float(accountant.get_epsilon(delta)) if noise_multiplier else None
    return Spent(noise_multiplier, epsilon, delta, losses)


def example_gradients(
    model: Any, supports: Mapping[str, tuple[Tensor, Tensor]], batch: Batch
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of each example's loss with respect to the entries of a support.

    A linear's weight gradient of one example is gᵀx over its tokens, g being the gradient of the
    layer's output; only the entries of the support are kept.

    Args:
        model: a converted model with an open stream that asks for gradients; the caller sets α.
        supports: by layer, rows and columns of the entries, int64 [nnz] each.
        batch: padded examples.

    Returns:
        By layer fp32 [B, nnz], and the loss of each example, [B].
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_: OrthoLinear, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (args[0].detach(), output)

        return hook

    names = list(supports)
    handles = [linear(model, name).register_forward_hook(keep(name)) for name in names]
    try:
        losses = _losses(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(losses.sum(), [seen[name][1] for name in names])
    found = {}
    for name, gradient in zip(names, gradients, strict=True):
        rows, columns = supports[name]
        g = gradient.reshape(len(losses), -1, gradient.shape[-1]).float()
        x = seen[name][0].reshape(len(losses), -1, seen[name][0].shape[-1]).float()
        pairs = zip(g, x, strict=True)
        found[name] = torch.stack([(one.t() @ other)[rows, columns] for one, other in pairs])
    return found, losses.detach()


def support_of(part: CsrStream) -> tuple[Tensor, Tensor]:
    """Rows and columns of a sparse part's entries in CSR order, int64 [nnz] each."""
    counts = part.indptr.diff().long()
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return rows, part.indices.long()


def _set_grad_samples(
    model: Any,
    parameters: Mapping[str, nn.Parameter],
    supports: Mapping[str, tuple[Tensor, Tensor]],
    private: Sequence[Encoded],
) -> float | None:
    """Put per-example gradients where Opacus looks for them; the mean loss, None without any."""
    samples: dict[str, list[Tensor]] = {name: [] for name in parameters}
    losses: list[float] = []
    for start in range(0, len(private), _MICROBATCH):
        batch = pad(private[start : start + _MICROBATCH])
        gradients, loss = example_gradients(model, supports, batch)
        losses += loss.tolist()
        for name, gradient in gradients.items():
            samples[name].append(gradient)
    for name, parameter in parameters.items():
        # An empty sample takes a step of pure noise, as the accountant assumes.
        nothing = parameter.new_zeros(0, parameter.numel())
        parameter.grad_sample = torch.cat([nothing, *samples[name]])  # type: ignore[attr-defined]
    return sum(losses) / len(losses) if losses else None


def _losses(model: Any, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    position = torch.arange(1, ids.shape[1], device=device)
    wanted = (position >= batch.prompt_lengths.to(device)[:, None]) & (mask[:, 1:] == 1)
    nll = nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view_as(wanted)
    return torch.where(wanted, nll, 0.0).sum(1) / wanted.sum(1)


def sparse_parts(model: Any, stream: str) -> dict[str, CsrStream]:
    """The parts of an attached stream; ConfigError where one is not sparse, or there are none."""
    parts = stream_parts(model, stream)
    sparse = {name: part for name, part in parts.items() if isinstance(part, CsrStream)}
    if not parts or len(sparse) != len(parts):
        raise ConfigError(f"stream {stream!r}: DP-SGD trains sparse streams only")
    return sparse
