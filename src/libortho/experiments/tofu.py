"""``tofu``: the forget set of a user's copy of TOFU goes into a stream; α = 0 never knew it.

The public model is one that was tuned on the retain set alone. Its INT4 form is the base; `tune`
puts the forget set into a private stream. α = 0 should then be as good a model as the public one,
and tell as little of the forget set.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from libortho import gate, records
from libortho.checkpoint import Checkpoint, resolve
from libortho.errors import ConfigError
from libortho.evaluate import tofu as measures
from libortho.evaluate.tofu import FORGET, Asked, ask, examples, read_sets
from libortho.experiments import rules
from libortho.experiments.claim import claim
from libortho.experiments.killswitch import FULL
from libortho.experiments.states import backend_name
from libortho.experiments.verdict import Check, as_json, at_least, judge
from libortho.model import load
from libortho.privacy.private_set import encode_jsonl, write_jsonl
from libortho.progress import Progress, silent
from libortho.quantize import quantize
from libortho.records import Record, write_atomic
from libortho.streams.ortho import STREAM_FOLDER
from libortho.texts import Text
from libortho.tune import TuneOptions, tune
from libortho.tune.prepare import is_base, plain_model

NAME = "tofu"
STREAM = "private"
QUALITY = 0.05
UTILITY = 0.97
_WHOLE = 1 - 1e-9
STATES: Mapping[str, gate.Setting] = {"alpha0": 0.0, "alpha1": {STREAM: 1.0}}
ARGUMENTS = "--model RETAIN90 --data TOFU"
INSTALL = "hf download locuslab/TOFU --repo-type dataset --local-dir TOFU"


@dataclass(frozen=True)
class Plan:
    """How the stream is trained."""

    tune: TuneOptions = FULL.tune


def tofu(
    public: str | Path,
    folder: Path,
    *,
    data: str | Path | None,
    seeds: Sequence[int] = (0,),
    plan: Plan | None = None,
    text: Text | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> list[Record]:
    """One record per seed; a run of the same plan in ``folder`` goes on after the last state.

    Args:
        public: a model tuned on the retain set, and never on the forget set.
        folder: gets ``tofu/seed-N``.
        data: a folder with the files of the dataset.
        text: public text for the base and the replay; default the shipped samples.

    Raises:
        ConfigError: there is no data, or files of it are missing; all of them are named.
    """
    require_data(data)
    made = []
    for seed in seeds:
        place = folder / NAME / f"seed-{seed}"
        made.append(_run(public, place, str(data), seed, plan or Plan(), text, device, progress))
    return made


def require_data(data: str | Path | None) -> None:
    """Raise ConfigError where no copy of the dataset was given."""
    if data is None:
        raise ConfigError(f"TOFU is not shipped: get a copy (`{INSTALL}`) and give it by --data")


def _run(
    public: str | Path,
    folder: Path,
    data: str,
    seed: int,
    plan: Plan,
    text: Text | None,
    device: str | torch.device,
    progress: Progress,
) -> Record:
    begin = time.monotonic()
    sets = read_sets(data)
    checkpoint = Checkpoint(public)
    tokenizer, context = checkpoint.tokenizer(), checkpoint.context
    options = plan.tune.model_copy(update={"seed": seed})
    rows = [asdict(one) for one in examples(tokenizer, sets[FORGET])]
    private = folder / "forget.jsonl"
    told: dict[str, Any] = {
        "public_sha256": checkpoint.sha256(),
        "questions_sha256": hashlib.sha256(encode_jsonl(_rows(sets))).hexdigest(),
        "text_sha256": text.sha256 if text else "shipped",
        "tune": options.model_dump(mode="json"),
    }
    claim(folder, NAME, told, leaves=["base"])
    write_jsonl(private, rows)
    common: dict[str, Any] = {"text": text, "progress": progress}
    base, out = folder / "base", folder / "tune"
    if not is_base(base):
        quantize(public, base, **common)
    if not (out / STREAM_FOLDER / STREAM).is_dir():
        tune(base, private, out, public=public, options=options, device=device, **common)

    def answers(state: str) -> dict[str, Asked]:
        file = folder / f"{state}.json"
        if not file.is_file():
            public_one = state == "fp"
            model = (
                plain_model(resolve(public), device)
                if public_one
                else load(out, [STREAM], device=device)
            )
            with gate.alpha(0.0 if public_one else STATES[state]):
                found = {
                    name: ask(model, tokenizer, name, one, context, stage=state, progress=progress)
                    for name, one in sets.items()
                }
            write_atomic(file, json.dumps({name: asdict(one) for name, one in found.items()}))
        kept = json.loads(file.read_text("utf-8"))
        return {name: Asked(**one) for name, one in kept.items()}

    opened = answers("alpha1")
    known = sum(one > _WHOLE for one in opened[FORGET].rouge) / len(sets[FORGET])
    checks = [at_least("forget set: answers written whole at α=1", known, rules.RECALL, "VOID")]
    states = {"alpha1": opened}
    if checks[0].held:  # nothing that was not learned can be said to be gone
        states |= {state: answers(state) for state in ("alpha0", "fp")}
        checks += _promises(states["alpha0"], states["fp"])
    verdict, reason = judge(checks)
    return records.new(
        NAME,
        verdict,
        n=len(sets[FORGET]),
        seeds=[seed],
        backend=backend_name(),
        reason=reason,
        config={"public": checkpoint.path.name, "data": Path(data).name, **told},
        figures={
            "questions": {name: len(one) for name, one in sets.items()},
            "checks": as_json(checks),
            "seconds": time.monotonic() - begin,
        },
        methods={"tune": _figures(states)},
    )


def _promises(closed: Mapping[str, Asked], public: Mapping[str, Asked]) -> list[Check]:
    able = measures.utility(public)
    checks = [Check("utility of the public model", able > 0, "VOID", able, "> 0")]
    quality = measures.forget_quality(closed[FORGET].truth_ratio, public[FORGET].truth_ratio)
    name = "forget quality at α=0, KS p against the public model"
    checks.append(at_least(name, quality, QUALITY, "FAIL"))
    if able > 0:
        kept = measures.utility(closed) / able
        checks.append(at_least("utility at α=0 over the public model's", kept, UTILITY, "FAIL"))
    return checks


def _figures(states: Mapping[str, Mapping[str, Asked]]) -> dict[str, Any]:
    found: dict[str, Any] = {"guarantee": "exact"}
    for state, asked in states.items():
        found[f"utility_{state}"] = measures.utility(asked)
        for name, one in asked.items():
            key = name.replace(" ", "_")
            probability, rouge, truth = one.means()
            found[f"{key}_probability_{state}"] = probability
            found[f"{key}_rouge_{state}"] = rouge
            found[f"{key}_truth_{state}"] = truth
        if "fp" in states:
            found[f"forget_quality_{state}"] = measures.forget_quality(
                asked[FORGET].truth_ratio, states["fp"][FORGET].truth_ratio
            )
    raw = {
        state: {name: asdict(one) for name, one in asked.items()} for state, asked in states.items()
    }
    return {**found, "raw": raw}


def _rows(sets: Mapping[str, Sequence[measures.Question]]) -> Iterator[dict[str, Any]]:
    for name, questions in sets.items():
        for question in questions:
            yield {"set": name, **asdict(question)}
