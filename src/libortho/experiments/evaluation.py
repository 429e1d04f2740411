"""All ways measured on the same inputs, against stock transformers and an untouched base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from libortho import gate
from libortho.evaluate.arithmetic import as_examples, make_problems
from libortho.evaluate.inputs import Inputs
from libortho.evaluate.perplexity import perplexity
from libortho.evaluate.processes import StockScores, run_probe, run_stock
from libortho.experiments import rules
from libortho.experiments.claim import claim
from libortho.experiments.family import CONDITION, FAMILY
from libortho.experiments.figures import ARITHMETIC, HELDOUT, PYDOC, Figures, figures
from libortho.experiments.states import Measured, measure
from libortho.experiments.ways import Made
from libortho.model import load
from libortho.privacy.encode import encode, pad
from libortho.privacy.exposure import exposure_sampled
from libortho.privacy.statistics import judge_family, member_control_tests
from libortho.progress import Progress, silent
from libortho.records import write_atomic
from libortho.texts import Text, windows


@dataclass(frozen=True)
class Measures:
    """How much is measured.

    Attributes:
        heldout: the text whose perplexity gates the verdict.
        pydoc: real text that every machine has.
        tokens: of each text, at least.
        problems: of arithmetic.
        candidates: random candidates per secret for the exposure at α = 0; 0 ranks members among
            the controls instead.
    """

    heldout: Text
    pydoc: Text
    tokens: int
    problems: int
    candidates: int


@dataclass
class Evaluated:
    """What was found.

    Attributes:
        merged: recall of the merged model, and its perplexity ratio to the public one.
        family: the member/control tests at α = 0, where they were run.
    """

    ways: dict[str, Figures]
    merged: tuple[float, float]
    family: dict[str, Any] | None


def evaluate(
    made: Made,
    measures: Measures,
    folder: Path,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Evaluated:
    """Evaluate every way that was made.

    Args:
        folder: keeps the sampled exposures, so that an interrupted run goes on after them.
        device: of the sampled exposures; everything else runs on the CPU.
    """
    tokenizer = made.base.checkpoint.tokenizer()
    context = made.base.config.max_position_embeddings
    heldout = windows(measures.heldout, tokenizer, context, measures.tokens)
    pydoc = windows(measures.pydoc, tokenizer, context, measures.tokens)
    problems = encode(tokenizer, as_examples(make_problems(measures.problems, seed)))
    secrets = {
        "members": pad(made.members),
        "controls": pad(made.controls),
        ARITHMETIC: pad(problems),
    }
    core = Inputs({HELDOUT: heldout}, secrets)
    both = Inputs({HELDOUT: heldout, PYDOC: pydoc}, secrets)
    fp: dict[Path, StockScores] = {}
    for way in made.ways:
        if way.stands_for not in fp:
            fp[way.stands_for] = run_stock(way.stands_for, both, progress=progress)
    # Bases that are byte for byte the same need one process each, not one per way.
    by_base = {}
    for way in made.ways:
        base_id = json.loads((way.path / "libortho.json").read_text("utf-8"))["base_id"]
        if base_id not in by_base:
            by_base[base_id] = (
                run_stock(way.path, core, progress=progress),
                run_probe(way.path, core, progress=progress),
            )
    found: dict[str, tuple[Measured, StockScores]] = {}
    for way in made.ways:
        base_id = json.loads((way.path / "libortho.json").read_text("utf-8"))["base_id"]
        int4, untouched = by_base[base_id]
        texts = {"repair": {HELDOUT: heldout}, "alpha1": {HELDOUT: heldout, PYDOC: pydoc}}
        measured = measure(
            way,
            core,
            made.members,
            made.controls,
            untouched,
            problems=problems,
            texts=texts,
            progress=progress,
        )
        found[way.name] = measured, int4
    merged = _merged(fp, made)
    opened = [found[way.name][0].recall("alpha1") for way in made.ways if way.guarantee == "exact"]
    # A run that is VOID for want of recall is not worth the candidates of its family of tests.
    sampled, family = (
        _sampled(made, measures, folder, device, progress)
        if min([merged[0], *opened]) >= rules.RECALL
        else ({}, None)
    )
    ways: dict[str, Figures] = {}
    for way in made.ways:
        measured, int4 = found[way.name]
        ways[way.name] = figures(
            way,
            measured,
            fp[way.stands_for],
            int4,
            sampled=sampled if way.guarantee == "exact" else {},
            seed=seed,
        )
    return Evaluated(ways, merged, family)


def _merged(fp: Mapping[Path, StockScores], made: Made) -> tuple[float, float]:
    tuned, public = fp[made.merged], fp[made.ways[0].stands_for]
    recall = float(tuned.secrets["members"].exact.double().mean())
    return recall, perplexity(tuned.windows[HELDOUT].nll) / perplexity(public.windows[HELDOUT].nll)


def _sampled(
    made: Made, measures: Measures, folder: Path, device: str | torch.device, progress: Progress
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, Any] | None]:
    """Sampled exposures at α = 0 of the base that all exact ways share, and the family of tests."""
    if not measures.candidates:
        return {}, None
    file = folder / "exposure-alpha0.json"
    told: dict[str, JsonValue] = {"base": made.base.id, "candidates": measures.candidates}
    claim(folder, file.stem, told, leaves=[file.name])
    if not file.is_file():
        model = load(made.base.path, device=device)
        tokenizer = made.base.checkpoint.tokenizer()
        halves = {}
        for half in ("members", "controls"):
            canaries = getattr(made.canaries, half)
            drawn = [made.canaries.candidates(one, measures.candidates) for one in canaries]
            with gate.alpha(0.0):
                found = exposure_sampled(
                    model, tokenizer, canaries, drawn, stage=f"exposure {half}", progress=progress
                )
            halves[half] = {
                "nll": [one.nll for one in found],
                "exposure": [one.skew_normal_bits for one in found],
                "empirical": [one.empirical_bits for one in found],
            }
        write_atomic(file, json.dumps(halves))
    halves = json.loads(file.read_text("utf-8"))
    members, controls = halves["members"], halves["controls"]
    tests = member_control_tests(
        CONDITION,
        member_nll=members["nll"],
        control_nll=controls["nll"],
        member_exposure=members["exposure"],
        control_exposure=controls["exposure"],
    )
    judged = judge_family(FAMILY, tests)
    family = {
        "listed": list(FAMILY),
        "statistic": {test.name: test.statistic for test in tests},
        "p": {test.name: test.p for test in tests},
        "adjusted": dict(judged.adjusted),
        "candidates": measures.candidates,
        "raw": halves,
    }
    return {"alpha0": (members["exposure"], controls["exposure"])}, family
