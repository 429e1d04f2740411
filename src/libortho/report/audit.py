"""What an audit's record says: headline numbers, a table of attacks by state, one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from libortho.audit import AUDIT
from libortho.experiments.verdict import MEANING
from libortho.privacy.attacks import ATTACKS
from libortho.privacy.attacks.discoverable import UNREACHABLE
from libortho.records import Record, load_raw
from libortho.report.cards import Card
from libortho.report.view import Cell

NULL_AUC = 0.5
VOIDED = f": {MEANING['VOID']}."
GROUPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Asking for the secrets": (
        "Does the model write them down?",
        ("greedy", "prefix", "beam", "discoverable", "near-verbatim", "association"),
    ),
    "Telling who was there": (
        "Does the model find what it was trained on more likely than what it never saw?",
        ("exposure", "loss", "zlib", "min-k", "min-k++", "reference", "lira", "gradient"),
    ),
    "Working on the weights": (
        "Does what was hidden come back? Asked of the state that is judged alone.",
        ("requantise", "perturb", "relearn"),
    ),
}
SECRETS = ("recited", "within", "among")
"""Figures whose names begin or go on with these count secrets that came out."""

Halves = tuple[list[float], list[float]]


@dataclass(frozen=True)
class AuditState:
    """One state of the gate, with its raw scores loaded."""

    label: str
    judged: bool
    attacks: Mapping[str, Mapping[str, Mapping[str, JsonValue]]]
    raw: Mapping[str, JsonValue]

    def figure(self, attack: str, key: str) -> Mapping[str, JsonValue] | None:
        """A figure: value, low, high, n and perhaps count."""
        return self.attacks.get(attack, {}).get(key)

    def number(self, attack: str, key: str, part: str = "value") -> float | None:
        """One part of a figure."""
        found = (self.figure(attack, key) or {}).get(part)
        return float(found) if isinstance(found, int | float) else None

    def relearned(self) -> dict[str, tuple[list[float], list[float]]]:
        """Recall of the trained and the unseen half after each step, of model and reference."""
        raw = self.raw.get("relearn")
        curves = {} if not isinstance(raw, dict) else raw
        return {
            name: (_numbers(curve.get("trained")), _numbers(curve.get("unseen")))
            for name, curve in curves.items()
            if isinstance(curve, dict)
        }

    def scores(self, attack: str, level: str | None = None) -> Halves | None:
        """Raw scores of members and controls."""
        found = self.raw.get(attack)
        if level is not None and isinstance(found, dict):
            found = found.get(level)
        if not isinstance(found, dict):
            return None
        members, controls = _numbers(found.get("members")), _numbers(found.get("controls"))
        return (members, controls) if members and controls else None


@dataclass(frozen=True)
class AttackRows:
    """One attack in the table: what it is, and per figure one cell a state."""

    title: str
    explains: str
    good: str
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Group:
    """Attacks of one kind."""

    title: str
    question: str
    attacks: Sequence[AttackRows]


def is_audit(record: Record) -> bool:
    """Whether a record is one of ``libortho audit``."""
    return record.experiment == AUDIT


def states(record: Record) -> list[AuditState]:
    """The states of an audit, from closed to open.

    Raises:
        FormatError: Raw scores kept outside the record are absent or altered.
    """
    found = []
    for label, method in record.methods.items():
        attacks = method.figures.get("attacks")
        found.append(
            AuditState(
                label,
                method.figures.get("judged") is True,
                attacks if isinstance(attacks, dict) else {},  # type: ignore[arg-type]
                load_raw(record, method.raw),
            )
        )
    return found


def groups(found: Sequence[AuditState]) -> list[Group]:
    """The table: every attack that was run, its shown figures by state."""
    made = []
    for title, (question, names) in GROUPS.items():
        attacks = []
        for name in names:
            attack = ATTACKS[name]
            rows = [
                (key, [cell(state, name, key) for state in found])
                for key in attack.shown
                if any(state.figure(name, key) for state in found)
            ]
            if rows:
                attacks.append(AttackRows(attack.title, attack.explains, attack.good, rows))
        if attacks:
            made.append(Group(title, question, attacks))
    return made


def cell(state: AuditState, attack: str, key: str) -> Cell:
    """A figure with interval and n; marked where a judged state gives something away."""
    figure = state.figure(attack, key)
    if figure is None:
        reason = "asked of the judged state alone" if ATTACKS[attack].weights else "not in this run"
        return Cell("—", reason, kind="absent")
    value, low, high = (float(figure[part]) for part in ("value", "low", "high"))  # type: ignore[arg-type]
    of_controls = key.endswith((", controls", ", reference"))
    if "count" in figure:
        counts = not of_controls and any(word in key for word in SECRETS)
        bad = state.judged and counts and bool(figure["count"])
        interval = f"[{100 * low:.1f}, {100 * high:.1f}]%"
        return Cell(f"{figure['count']}/{figure['n']}", interval, bad=bad)
    told = key.endswith("AUC") and not low <= NULL_AUC <= high
    digits = 3 if key.endswith("AUC") else 2
    limit = _limit(state, key)
    if limit is not None:
        if value > limit:
            return Cell(f"> {limit}", f"not within {limit} steps, n = {figure['n']}")
        digits = 0 if value == int(value) else 1
    if key.startswith("log10 queries") and value >= UNREACHABLE:
        return Cell("never", f"outside the sampler's reach, n = {figure['n']}")
    return Cell(
        f"{value:.{digits}f}",
        f"[{low:.{digits}f}, {high:.{digits}f}] n = {figure['n']}",
        bad=state.judged and told,
    )


def cards(record: Record, found: Sequence[AuditState], command: str) -> list[Card]:
    """The headline numbers: of the most open state, and the worst of those that are judged.

    A number that the record says was not run has no card; one that is merely absent is missing.
    """
    judged = [state for state in found if state.judged] or list(found)
    missing = Cell("missing", command, kind="missing")
    first, widest = judged[0], found[-1]
    worst = max(judged, key=lambda state: state.number("greedy", "recited") or 0.0)
    family = record.figures.get("family")
    adjusted = family.get("adjusted") if isinstance(family, dict) else None
    values = {k: v for k, v in (adjusted or {}).items() if isinstance(v, int | float)}  # type: ignore[union-attr]
    lowest = min(values, key=lambda name: values[name]) if values else None
    seconds = record.figures.get("seconds")
    made: list[tuple[str, str, Cell, str]] = [
        (
            "greedy",
            f"Recited, {worst.label}",
            _shown(worst, "greedy", "recited", missing),
            "0 is wanted",
        ),
        (
            "loss",
            f"AUC of the loss, {first.label}",
            _shown(first, "loss", "AUC", missing),
            "0.5 is wanted: members look like controls",
        ),
        (
            "exposure",
            f"Exposure, {first.label}",
            _shown(
                first,
                "exposure",
                "sampled" if first.figure("exposure", "sampled") else "rank",
                missing,
            ),
            "bits; 1.44 if never seen",
        ),
        (
            "loss",
            "Lowest adjusted p",
            missing
            if lowest is None
            else Cell(f"{values[lowest]:.3g}", lowest, bad=values[lowest] <= 0.05),
            f"above 0.05 is wanted; Holm, over {len(values)} two-sided tests",
        ),
        (
            "relearn",
            f"Steps to relearn half, {first.label}",
            _shown(first, "relearn", "steps to half", missing),
            _relearning(first),
        ),
        (
            "time",
            "Time",
            Cell(f"{seconds:,.0f} s") if isinstance(seconds, int | float) else missing,
            "the whole audit; lower is better",
        ),
    ]
    if not widest.judged:
        power = (
            "greedy",
            f"Recited, {widest.label}",
            _shown(widest, "greedy", "recited", missing),
            "the power gate: 95% is needed, or silence shows nothing",
        )
        made.insert(0, power)
    return [
        Card(label, value, meaning)
        for attack, label, value, meaning in made
        if value is not missing or attack not in record.not_run
    ]


def sentence(record: Record, found: Sequence[AuditState]) -> str:
    """One plain sentence that says what the verdict means."""
    judged = [state for state in found if state.judged]
    if not found or not judged:
        return "The audit holds no state that could be judged."
    labels = " and ".join(state.label for state in judged)
    where = "As it is" if labels == "as it is" else f"At {labels}"
    widest = found[-1]
    if record.verdict == "VOID":
        return f"This audit shows nothing, neither way: {record.reason.removesuffix(VOIDED)}."
    opened = "" if widest.judged else f"; at {widest.label} it recites {_recited(widest)}"
    if record.verdict == "PASS":
        return (
            f"{where} no attack told the data from rows that the model never saw, and it recites "
            f"{_recited(judged[0])}{opened}."
        )
    telling = sum(
        1
        for state in judged
        for attack in state.attacks
        for key in state.attacks[attack]
        if key.endswith("AUC") and cell(state, attack, key).bad
    )
    return (
        f"{where} the model still knows the data: it recites {_recited(judged[0])}, and {telling} "
        f"measure(s) tell the data from rows it never saw{opened}."
    )


def _recited(state: AuditState) -> str:
    figure = state.figure("greedy", "recited") or {}
    return f"{figure.get('count')} of {figure.get('n')}"


def _relearning(state: AuditState) -> str:
    other = state.number("relearn", "steps to half, reference")
    if other is None:
        return "more is better; a reference was not given"
    limit = _limit(state, "steps to half, reference")
    shown = f"more than {limit}" if limit is not None and other > limit else f"{other:g}"
    return f"as many as the never-exposed model's are wanted: {shown}"


def _shown(state: AuditState, attack: str, key: str, missing: Cell) -> Cell:
    return cell(state, attack, key) if state.figure(attack, key) else missing


def _limit(state: AuditState, key: str) -> int | None:
    """The most steps that relearning was given, where ``key`` counts them."""
    raw = state.raw.get("relearn")
    if not key.startswith("steps to half") or not isinstance(raw, dict):
        return None
    one = raw.get("reference" if key.endswith("reference") else "model")
    limit = one.get("limit") if isinstance(one, dict) else None
    return limit if isinstance(limit, int) else None


def _numbers(value: JsonValue) -> list[float]:
    if not isinstance(value, list):
        return []
    return [float(item) for item in value if isinstance(item, int | float)]
