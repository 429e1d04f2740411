"""From scores to the figures, raw arrays and checks of one way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from libortho.privacy.score import Score
from libortho.privacy.statistics import paired_bootstrap_ratio
from libortho.streams.base import BaseStream
from libortho.streams.ortho import STREAM_FOLDER, OrthoStream

HELDOUT, PYDOC = "heldout", "pydoc"


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
    _secrets(found, way, measured, fp, int4, sampled)
    _bytes(values, way)
    return found


def _secrets(
    found: Figures,
    way: Way,
    measured: Measured,
    fp: StockScores,
    int4: StockScores,
    sampled: Mapping[str, tuple[list[float], list[float]]],
) -> None:
    raw: dict[str, dict[str, Any]] = {"nll": {}, "exposure": {}, "exact": {}}
    for state, stock in (("fp", fp), ("int4", int4)):
        pair = [stock.secrets[half] for half in ("members", "controls")]
        _add(
            raw,
            state,
            *[one.nll.tolist() for one in pair],
            *[one.exact.tolist() for one in pair],
            None,
        )
    for state, (members, controls) in measured.scores.items():
        _add(
            raw,
            state,
            _nll(members),
            _nll(controls),
            _exact(members),
            _exact(controls),
            sampled.get(state),
        )
    for state in raw["nll"]:
        count = sum(raw["exact"][state]["members"])
        found.values[f"extracted_{state}"] = count
        found.values[f"recall_{state}"] = count / found.values["members"]
        for kind in ("nll", "exposure"):
            found.values[f"{kind}_{state}"] = fmean(raw[kind][state]["members"])
        found.values[f"nll_{state}_controls"] = fmean(raw["nll"][state]["controls"])
    found.values["exposure_kind"] = {
        state: "sampled" if state in sampled else "controls" for state in raw["nll"]
    }
    found.raw |= raw


def _add(
    raw: dict[str, dict[str, Any]],
    state: str,
    members: list[float],
    controls: list[float],
    exact_members: list[bool],
    exact_controls: list[bool],
    sampled: tuple[list[float], list[float]] | None,
) -> None:
    raw["nll"][state] = {"members": members, "controls": controls}
    raw["exact"][state] = {
        "members": [int(one) for one in exact_members],
        "controls": [int(one) for one in exact_controls],
    }
    ours, theirs = sampled or (
        exposure_against(members, controls),
        [
            exposure_against([one], controls[:i] + controls[i + 1 :])[0]
            for i, one in enumerate(controls)
        ],
    )
    raw["exposure"][state] = {"members": ours, "controls": theirs}


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


def _nll(scores: Sequence[Score]) -> list[float]:
    return [one.nll for one in scores]


def _exact(scores: Sequence[Score]) -> list[bool]:
    return [one.exact for one in scores]
