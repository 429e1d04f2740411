"""``dp``: a private stream under differential privacy, its accountant's ε against an attack's."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from libortho import gate, records
from libortho.evaluate.perplexity import token_nll
from libortho.experiments import ways
from libortho.experiments.killswitch import FULL as FULL_WAYS
from libortho.experiments.states import backend_name
from libortho.experiments.verdict import Check, as_json, judge
from libortho.experiments.ways import DEMO, make_base
from libortho.model import attach_layers
from libortho.privacy.canaries import CanarySet, make_canaries
from libortho.privacy.encode import Encoded, encode
from libortho.privacy.epsilon import epsilon_lower_bound
from libortho.privacy.exposure import exposure_against
from libortho.privacy.score import score
from libortho.privacy.statistics import auc, clopper_pearson
from libortho.progress import Progress, silent
from libortho.records import Record, write_atomic
from libortho.streams.base import BaseStream
from libortho.texts import Text, heldout, windows
from libortho.tune.dpsgd import (
    DPOptions,
    noise_for,
    random_supports,
    require_opacus,
    sparse_parts,
    train_privately,
)
from libortho.tune.prepare import Ground, ground

NAME = "dp"
STREAM = "private"
UNPROTECTED = "no-noise"
ABLATION = "weight-noise"


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        members: examples that are trained on, one canary each; as many controls are not.
        tokens: of held-out text.
        options: of the training.
        epsilons: what the accountant may spend, one training each.
        noises: of the ablation: standard deviations over that of the trained values.
        ways: how the base and its `repair` are made where the folder has none.
    """

    members: int = 200
    tokens: int = 20_000
    options: DPOptions = field(default_factory=DPOptions)
    epsilons: tuple[float, ...] = (1.0, 8.0)
    noises: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0)
    ways: ways.Plan = FULL_WAYS


FULL = Plan()
SMALL = Plan(members=100, tokens=10_000, options=DPOptions(steps=60), ways=DEMO)


def dp(
    public: str | Path,
    folder: Path,
    *,
    seeds: Sequence[int] = (0,),
    plan: Plan = FULL,
    text: Text | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[Record]:
    """One record per seed; a run in the same ``folder`` goes on after the last training.

    The base and `repair` are public and cost no budget, and the support is drawn at random by a
    seed. The values alone are private, so that everything computed from the stream, at every α,
    has the ε that the accountant tells for its training (post-processing). The training without
    noise comes first: where the attack proves too little on it, the run is VOID, and ends.

    Args:
        folder: its ``base`` is used, or made; gets ``dp/``.
        text: public text for the base and `repair`, where they are made.

    Raises:
        ConfigError: Opacus is absent, before any work.
    """
    require_opacus()
    made = []
    for seed in seeds:
        begin = time.monotonic()
        base = make_base(public, folder, plan.ways, text=text, device=device, progress=progress)
        seeded = replace(plan, options=plan.options.model_copy(update={"seed": seed}))
        bench = _Bench(base, seeded, seed, folder / NAME, device, progress)
        found = {UNPROTECTED: bench.trained(UNPROTECTED, None)}
        if _power(found[UNPROTECTED]["figures"], plan.epsilons).held:
            found |= {f"eps-{one:g}": bench.trained(f"eps-{one:g}", one) for one in plan.epsilons}
            found[ABLATION] = bench.ablation()
        made.append(_record(public, bench, found, time.monotonic() - begin))
    return made


class _Bench:
    """What every training of one seed shares, and where its results are kept."""

    def __init__(
        self,
        base: BaseStream,
        plan: Plan,
        seed: int,
        folder: Path,
        device: str | torch.device,
        progress: Progress,
    ) -> None:
        self.base, self.plan, self.seed = base, plan, seed
        self.device, self.progress = device, progress
        self.canaries: CanarySet = make_canaries(plan.members, seed)
        tokenizer = base.checkpoint.tokenizer()
        self.members: list[Encoded] = encode(tokenizer, self.canaries.members)
        self.controls: list[Encoded] = encode(tokenizer, self.canaries.controls)
        context = base.config.get_text_config().max_position_embeddings
        self.windows: Tensor = windows(heldout(), tokenizer, context, plan.tokens)
        self.delta = 1 / plan.members
        told = f"{base.id} {self.canaries.sha256} {plan.options.model_dump_json()} {plan.tokens}"
        told += f" {plan.noises}"
        self.folder = folder / f"seed-{seed}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def trained(self, name: str, epsilon: float | None) -> dict[str, Any]:
        """Train under ``epsilon`` (None: no noise) and measure; or read what was measured."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            options = self.plan.options
            noise = 0.0 if epsilon is None else noise_for(epsilon, self.delta, options)
            laid, alpha = self._laid()
            spent = train_privately(
                laid.model,
                STREAM,
                self.members,
                options,
                noise_multiplier=noise,
                delta=self.delta,
                alpha=alpha,
                progress=self.progress,
            )
            with gate.alpha(alpha):
                found = self._measured(laid.model)
            found["figures"] |= {
                "noise_multiplier": noise,
                "epsilon": spent.epsilon,
                "delta": self.delta,
            }
            found["losses"] = spent.losses
            if epsilon is None:
                parts = sparse_parts(laid.model, STREAM)
                values = {layer: part.csr_values().cpu() for layer, part in parts.items()}
                save_file(values, self.folder / f"{name}.safetensors")
            write_atomic(file, json.dumps(found))
        kept: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return kept

    def ablation(self) -> dict[str, Any]:
        """Noise on the finished weights of the unprotected stream. It bounds nothing: no ε."""
        file = self.folder / f"{ABLATION}.json"
        if not file.is_file():
            values = load_file(self.folder / f"{UNPROTECTED}.safetensors")
            points = []
            for sigma in self.plan.noises:
                laid, alpha = self._laid()
                generator = torch.Generator().manual_seed(self.seed)
                for layer, part in sparse_parts(laid.model, STREAM).items():
                    kept = values[layer].float()
                    noise = torch.randn(kept.shape, generator=generator) * kept.std() * sigma
                    (parameter,) = part.trainable()
                    parameter.data.copy_(kept + noise)
                    part.freeze()
                with gate.alpha(alpha):
                    points.append({"sigma": sigma, **self._measured(laid.model)})
            write_atomic(file, json.dumps(points))
        points = json.loads(file.read_text("utf-8"))
        shown = ("recall", "auc", "exposure", "nll", "nll_controls", "ppl")
        table = [
            {"sigma": point["sigma"], **{key: point["figures"][key] for key in shown}}
            for point in points
        ]
        raw = {f"{point['sigma']:g}": point["nll"] for point in points}
        return {"figures": {"ablation": table}, "nll": raw}

    def _laid(self) -> tuple[Ground, dict[str, float]]:
        """The base with its public streams open and an empty private one on a public support."""
        laid = ground(self.base, self.device)
        options = self.plan.options
        info = gate.StreamInfo(STREAM, "", False, tuple(laid.requires))
        attach_layers(laid.model, info, random_supports(laid.model, options.density, options.seed))
        return laid, {**laid.alpha, STREAM: 1.0}

    def _measured(self, model: Any) -> dict[str, Any]:
        members = score(model, self.members, stage="members", progress=self.progress)
        controls = score(model, self.controls, stage="controls", progress=self.progress)
        nll = token_nll(model, self.windows, stage="text", progress=self.progress)
        ours, theirs = [one.nll for one in members], [one.nll for one in controls]
        recited = sum(one.exact for one in members)
        interval = clopper_pearson(recited, len(members))
        bound = epsilon_lower_bound(ours, theirs, self.delta)
        return {
            "figures": {
                "recall": recited / len(members),
                "recall_interval": [interval.low, interval.high],
                "nll": fmean(ours),
                "nll_controls": fmean(theirs),
                "auc": auc(ours, theirs),
                "exposure": fmean(exposure_against(ours, theirs)),
                "epsilon_lower": bound.epsilon,
                "audit": asdict(bound),
                "ppl": math.exp(nll.double().mean().item()),
            },
            "nll": {"members": ours, "controls": theirs},
        }


def _record(
    public: str | Path, bench: _Bench, found: Mapping[str, Mapping[str, Any]], seconds: float
) -> Record:
    checks = _checks({name: one["figures"] for name, one in found.items()}, bench.plan.epsilons)
    verdict, reason = judge(checks)
    plan = bench.plan
    methods = {}
    for name, one in found.items():
        raw = {key: value for key, value in one.items() if key != "figures"}
        methods[name] = {**one["figures"], "raw": raw}
    return records.new(
        NAME,
        verdict,
        n=plan.members,
        seeds=[bench.seed],
        backend=backend_name(),
        reason=reason,
        config={
            "public": Path(public).name,
            "canaries_sha256": bench.canaries.sha256,
            "unit": "one example",
            "support": "drawn at random by the seed",
            "accountant": "Rényi (Opacus)",
            "tokens": plan.tokens,
            "options": plan.options.model_dump(mode="json"),
            "epsilons": list(plan.epsilons),
            "device": str(bench.device),
        },
        figures={
            "members": plan.members,
            "controls": plan.members,
            "delta": bench.delta,
            "checks": as_json(checks),
            "seconds": seconds,
        },
        methods=methods,
    )


def _power(unprotected: Mapping[str, Any], epsilons: Sequence[float]) -> Check:
    """Without noise the attack proves more than the smallest ε, or it would never find anything."""
    proved, smallest = unprotected["epsilon_lower"], min(epsilons)
    name = f"{UNPROTECTED}: audited lower bound of ε, against the smallest ε to be spent"
    return Check(name, proved > smallest, "VOID", proved, f"> {smallest:g}")


def _checks(figures: Mapping[str, Mapping[str, Any]], epsilons: Sequence[float]) -> list[Check]:
    """No attack may prove more than the accountant admits, and this one could have."""
    checks = [_power(figures[UNPROTECTED], epsilons)]
    for name, one in figures.items():
        if one.get("epsilon"):
            what = f"{name}: audited lower bound of ε, against the accountant's"
            lower, spent = one["epsilon_lower"], one["epsilon"]
            checks.append(Check(what, lower <= spent, "FAIL", lower, f"≤ {spent:.4g}"))
    return checks
