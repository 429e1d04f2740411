"""From scores to the figures, raw arrays and checks of one way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor

from libortho.evaluate.perplexity import distance, perplexity
from libortho.evaluate.processes import StockScores
from libortho.experiments.states import (
    Measured,
    Way,
    bits_per_weight,
    checkpoint_bytes,
    stream_bytes,
)
from libortho.privacy.exposure import exposure_against
from libortho.privacy.statistics import clopper_pearson, paired_bootstrap_ratio
from libortho.streams.base import BaseStream
from libortho.streams.ortho import STREAM_FOLDER, OrthoStream

HELDOUT, PYDOC, ARITHMETIC = "heldout", "pydoc", "arithmetic"

_Halves = tuple[list[float], list[float]]


@dataclass
class Figures:
    """What the record says of one way."""

    values: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)


def figures(
    way: Way,
    measured: Measured,
    fp: StockScores,
    int4: StockScores,
    *,
    sampled: Mapping[str, tuple[list[float], list[float]]],
    seed: int,
) -> Figures:
    """Figures of one way.

    Args:
        measured: libortho's own scores by state.
        fp: stock transformers on the floating-point model that α = 1 stands for.
        int4: stock transformers on this way's base directory.
        sampled: per state, sampled exposures of members and controls where they were taken;
            other states rank members among the controls.
    """
    found = Figures()
    base = BaseStream.open(way.path)
    private = OrthoStream.open(way.path / STREAM_FOLDER / "private")
    weights = sum(n * k for n, k in base.layers.values())
    stored = sum(entry.nnz for entry in private.manifest.layers.values())
    nll = {"fp": fp.windows[HELDOUT].nll, "int4": int4.windows[HELDOUT].nll}
    nll |= {state: texts[HELDOUT] for state, texts in measured.nll.items()}
    values = found.values
    values |= {
        "guarantee": way.guarantee,
        "members": len(measured.scores["alpha0"][0]),
        "controls": len(measured.scores["alpha0"][1]),
        "identical_alpha0": not measured.unlike,
        "density": stored / weights,
        "bits_per_weight": bits_per_weight(base, sum(map(stream_bytes, _streams(way)))),
        "native_op_calls": measured.calls.native_op_calls,
        "dense_route_calls": measured.calls.dense_route_calls,
        "expected_op_calls": measured.calls.expected_op_calls,
        "tolerance_log_prob": measured.tolerance,
        "distance_alpha0_int4": distance(nll["alpha0"], nll["int4"]),
        "distance_alpha0_fp": distance(nll["alpha0"], nll["fp"]),
        "ppl_pydoc_fp": perplexity(fp.windows[PYDOC].nll),
        "ppl_pydoc_alpha1": perplexity(measured.nll["alpha1"][PYDOC]),
        "bytes_fp": checkpoint_bytes(way.stands_for),
        "bytes_int4": checkpoint_bytes(way.path),
    }
    values |= _interval(
        "ppl_pydoc_ratio_alpha1_interval",
        measured.nll["alpha1"][PYDOC],
        fp.windows[PYDOC].nll,
        seed,
    )
    for state, tokens in nll.items():
        values[f"ppl_{state}"] = perplexity(tokens)
        if state != "fp":
            values |= _interval(f"ppl_ratio_{state}_interval", tokens, nll["fp"], seed)
    values.setdefault("ppl_repair", None)
    _secrets(found, measured, {"fp": fp, "int4": int4}, sampled)
    _arithmetic(found, measured, {"fp": fp, "int4": int4})
    _bytes(values, way)
    return found


def _secrets(
    found: Figures,
    measured: Measured,
    stock: Mapping[str, StockScores],
    sampled: Mapping[str, tuple[list[float], list[float]]],
) -> None:
    nll: dict[str, _Halves] = {}
    exact: dict[str, _Halves] = {}
    for state, scores in stock.items():
        members, controls = scores.secrets["members"], scores.secrets["controls"]
        nll[state] = (members.nll.tolist(), controls.nll.tolist())
        exact[state] = (members.exact.int().tolist(), controls.exact.int().tolist())
    for state, (ours, theirs) in measured.scores.items():
        nll[state] = ([one.nll for one in ours], [one.nll for one in theirs])
        exact[state] = ([int(one.exact) for one in ours], [int(one.exact) for one in theirs])
    exposure = {state: sampled.get(state) or _ranked(*halves) for state, halves in nll.items()}
    for state in nll:
        count = sum(exact[state][0])
        found.values[f"extracted_{state}"] = int(count)
        found.values[f"recall_{state}"] = count / len(exact[state][0])
        found.values[f"nll_{state}"] = fmean(nll[state][0])
        found.values[f"nll_{state}_controls"] = fmean(nll[state][1])
        found.values[f"exposure_{state}"] = fmean(exposure[state][0])
    found.values["exposure_kind"] = {
        state: "sampled" if state in sampled else "controls" for state in nll
    }
    for kind, states in (("nll", nll), ("exposure", exposure), ("exact", exact)):
        found.raw[kind] = {
            state: {"members": halves[0], "controls": halves[1]} for state, halves in states.items()
        }


def _arithmetic(found: Figures, measured: Measured, stock: Mapping[str, StockScores]) -> None:
    solved = {state: scores.secrets[ARITHMETIC].exact.tolist() for state, scores in stock.items()}
    solved |= measured.solved
    for state, flags in solved.items():
        within = clopper_pearson(sum(flags), len(flags))
        found.values[f"arithmetic_{state}"] = fmean(flags)
        found.values[f"arithmetic_{state}_interval"] = [within.low, within.high]
    found.raw[ARITHMETIC] = {
        state: [int(flag) for flag in flags] for state, flags in solved.items()
    }


def _ranked(members: list[float], controls: list[float]) -> _Halves:
    """Exposure by rank among the controls, each control among the others."""
    others = [controls[:i] + controls[i + 1 :] for i in range(len(controls))]
    theirs = [exposure_against([one], rest)[0] for one, rest in zip(controls, others, strict=True)]
    return exposure_against(members, controls), theirs


def _bytes(values: dict[str, Any], way: Way) -> None:
    sizes = {stream.name: stream_bytes(stream) for stream in _streams(way)}
    base = values["bytes_int4"]
    values["bytes_alpha0"] = base
    if "repair" in sizes:
        values["bytes_repair"] = base + sizes["repair"]
    values["bytes_alpha1"] = base + sum(sizes.values())


def _streams(way: Way) -> list[OrthoStream]:
    return [OrthoStream.open(way.path / STREAM_FOLDER / name) for name in way.streams]


def _interval(key: str, nll: Tensor, reference: Tensor, seed: int) -> dict[str, list[float]]:
    ratio = paired_bootstrap_ratio(nll.numpy(), reference.numpy(), seed=seed)
    bounds = [ratio.interval.low, ratio.interval.high]
    return {key: bounds} if all(map(math.isfinite, bounds)) else {}
