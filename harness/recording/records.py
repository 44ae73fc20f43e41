"""What a trial leaves in the results folder: the memory of everything that was computed.

    results/trials/<hash>/trial.json          what the trial is
    results/trials/<hash>/lock                held by the one process that runs it
    results/trials/<hash>/<attempt>/chunk-N.jsonl   records, in committed chunks
    results/trials/<hash>/<attempt>/last-N.pt       the checkpoint that stands behind the chunks up to N
    results/trials/<hash>/<attempt>/commit.json     names the chunks and the checkpoint that count
    results/trials/<hash>/<attempt>/log.jsonl       events; beside it log.txt, what the trial printed
    results/trials/<hash>/result.json         written once, atomically: only this means done

They are read here, and written by `harness.recording.attempts`.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

R = TypeVar("R")


class Status(StrEnum):
    """How a trial ended."""

    FINISHED = "finished"
    DIVERGED = "diverged"
    SCREENED = "screened"
    FAILED = "failed"
    OUT_OF_MEMORY = "out-of-memory"
    TIMED_OUT = "timed-out"
    BLOCKED = "blocked"
    LOST = "lost"

    @property
    def done(self) -> bool:
        """Whether the next run leaves it alone: failed ones are done until their code changes."""
        return self in (Status.FINISHED, Status.DIVERGED, Status.SCREENED, Status.FAILED)

    @property
    def good(self) -> bool:
        """Whether the trial went as planned: what does not is counted in the exit status."""
        return self in (Status.FINISHED, Status.DIVERGED, Status.SCREENED)


OVER = (Status.FINISHED, Status.DIVERGED, Status.FAILED)
"""How a trial ends for good under one code."""

ACTIONS = "actions"
"""What a control takes of another trial: all that its method did."""

WEIGHTS = "weights"
"""What a trial takes of another one to start from its weights alone: those of its selected checkpoint."""

CHECKPOINT = "checkpoint@"
"""What a trial takes of another one to branch from it, with the share of its steps: `checkpoint@0.25`."""


class RecordsError(RuntimeError):
    """The results folder cannot be read or written as it must be."""


class Locked(RecordsError):
    """Another process is running the trial."""


class Over(RuntimeError):
    """The trial has ended meanwhile: there is nothing left to attempt."""


@dataclass(frozen=True)
class Result:
    """The end of a trial: status, final metrics, and what they rest on."""

    hash: str
    status: Status
    code: str
    metrics: dict[str, float] = field(default_factory=dict)
    weights: str = ""
    """A digest of the weights after the last step: two runs of one trial agree to the bit if theirs are equal."""
    values: dict[str, float | str] = field(default_factory=dict)
    """What the trial took from the trials that it requires, by path."""
    steps: int = 0
    attempt: int = 1
    started: float = 0.0
    ended: float = 0.0
    reason: str = ""
    """One line on why a trial did not finish."""
    error: str = ""
    """The traceback, if the author's code raised."""
    environment: dict[str, Any] = field(default_factory=dict)
    screening: str = ""
    """The mark of the screening that stopped it."""
    kept: list[str] = field(default_factory=list)
    """Checkpoints that stay for trials that start from them."""

    def taken(self, what: str) -> float | str | None:
        """What another trial takes from this one, or what identifies it; None if there is no such thing.

        That is a metric by name; or `actions` and checkpoints, for which the digest of the weights says which run's.
        """
        if what == ACTIONS or what in self.kept:
            return self.weights if self.status is Status.FINISHED else None
        return None if self.status is Status.SCREENED else self.metrics.get(what)


@dataclass
class Commit:
    """The part of an attempt that counts."""

    attempt: int
    code: str = ""
    """The code digest under which it was computed: another code starts anew."""
    values: dict[str, Any] = field(default_factory=dict)
    """What the trial took from others, by path: with other values it starts anew."""
    step: int = 0
    chunks: list[str] = field(default_factory=list)
    covered: int | None = None
    """How many of the chunks the checkpoint stands behind, if not all: the last one of a trial has none of its own."""
    checkpoint: str | None = None
    best: str | None = None
    started: float = 0.0


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Writes a file so that readers see all of it or nothing of it; if `durable`, after a power cut too."""
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise RecordsError(f"{path}: cannot be written ({error})") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException as error:
        with suppress(OSError):  # where the file cannot be written, this may be no better
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RecordsError(f"{path}: cannot be written ({error})") from error
        raise


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Around what uses a file or folder of the records: trouble with it is that of the disk, and no trial's fault.

    Raises:
        RecordsError: if it cannot be used.
    """
    try:
        yield
    except OSError as error:
        raise RecordsError(f"{path}: cannot be used ({error})") from error


@contextmanager
def intact(file: Path, advice: str) -> Iterator[None]:
    """Around what reads a file: says in one line what is wrong with it, and what helps. One that is missing is no trouble.

    Raises:
        RecordsError: if the file cannot be read, or is not what was once written.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordsError(f"{file}: cannot be read ({error})") from error
    except (ValueError, TypeError, KeyError) as error:
        found = f"damaged content ({type(error).__name__}: {error})" if file.stat().st_size else "an empty file"
        raise RecordsError(f"{file}: found {found}, allowed: what was written there; {advice}") from error


def _kinds(record: type) -> list[tuple[str, Any, Any]]:
    """The fields of a record: name, type, and the type of what it holds."""
    found = []
    for name, hint in get_type_hints(record).items():
        holds = get_origin(hint) in (dict, list)
        found.append((name, get_origin(hint) if holds else _read(hint), _read(get_args(hint)[-1]) if holds else object))
    return found


def _read(hint: Any) -> Any:
    """The types that JSON gives back for one: a float may have no point."""
    if hint is Any:
        return object
    return hint | int if float in (hint, *get_args(hint)) else hint


KINDS: dict[type, list[tuple[str, Any, Any]]] = {record: _kinds(record) for record in (Result, Commit)}
"""What each field of a record must be where it is read."""


def _checked(read: R) -> R:
    """What was read, if every field has its type.

    Raises:
        TypeError: if not.
    """
    for name, kind, each in KINDS[type(read)]:
        value = getattr(read, name)
        content = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not isinstance(value, kind) or not all(isinstance(item, each) for item in content):
            raise TypeError(f"{name}: found {value!r:.80}, which is no {kind}")
    return read


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that are numbers: a value that is not finite becomes a status, never a metric."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


class TrialRecords:
    """One trial's folder, for reading."""

    def __init__(self, results: Path, hash: str) -> None:
        self.hash = hash
        self.folder = results / "trials" / hash

    def _intact(self, name: str) -> AbstractContextManager[None]:
        return intact(self.folder / name, self._advice)

    @property
    def _advice(self) -> str:
        return f"delete {self.folder}, and the next run computes this trial anew"

    def result(self) -> Result | None:
        """The result, if the trial is done or was ended.

        Raises:
            RecordsError: if it is damaged.
        """
        try:
            with self._intact("result.json"):
                content = json.loads((self.folder / "result.json").read_text())
                return _checked(Result(**content | {"status": Status(content["status"])}))
        except FileNotFoundError:
            return None

    def over(self, code: str, since: float) -> Result | None:
        """The result, if under this code the trial has ended for good since a point in time."""
        result = self.result()
        if result is None or result.status not in OVER:
            return None
        return result if result.code == code and result.ended >= since else None

    def attempts(self) -> list[int]:
        """Numbers of the attempts made so far.

        Raises:
            RecordsError: if the folder cannot be read.
        """
        with storage(self.folder):
            if not self.folder.is_dir():
                return []
            return sorted(int(child.name) for child in self.folder.iterdir() if child.name.isdigit())

    def commit(self) -> Commit | None:
        """The newest commit of the newest attempt that has one.

        Raises:
            RecordsError: if it is damaged.
        """
        for attempt in reversed(self.attempts()):
            name = f"{attempt}/commit.json"
            try:
                with self._intact(name):
                    return _checked(Commit(**json.loads((self.folder / name).read_text())))
            except FileNotFoundError:
                continue
        return None

    def saved(self, file: Path) -> bytes:
        """The content of a checkpoint that the records name.

        Raises:
            RecordsError: if it is missing or cannot be read.
        """
        try:
            with intact(file, self._advice):
                return file.read_bytes()
        except FileNotFoundError as error:
            raise RecordsError(f"{file}: found no such file, which the records name; {self._advice}") from error

    def kept(self, name: str) -> Path:
        """The file of a checkpoint that stays."""
        return self.folder / "kept" / f"{name}.pt"

    @contextmanager
    def chunk(self, name: str) -> Iterator[list[str]]:
        """The lines of a committed chunk, each a record; what they do not hold where they are read is damage.

        Raises:
            RecordsError: if it is damaged or missing.
        """
        path = self.folder / name
        try:
            with self._intact(name):
                text = path.read_text(encoding="utf-8")
                if not text.endswith("\n"):
                    raise ValueError("its last line is cut off")
                yield text.splitlines()
        except FileNotFoundError as error:
            raise RecordsError(f"{path}: found no such file, which a commit names; {self._advice}") from error

    def records(self) -> Iterator[dict[str, Any]]:
        """All committed records, in order: each step appears once, however often the trial was interrupted."""
        commit = self.commit()
        return self.read(commit.chunks if commit else [])

    def read(self, chunks: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The records of committed chunks."""
        for name in chunks:
            with self.chunk(name) as lines:
                yield from map(json.loads, lines)

    def verdict(self, mark: str, code: str) -> str:
        """Why a rule that compares trials stops this one; empty if it does not, or did under another rule or code.

        Raises:
            RecordsError: if it is damaged.
        """
        file = self.folder / "verdict.json"
        try:
            with intact(file, "delete it, and the rule decides again in the next run"):
                content = json.loads(file.read_text())
                return str(content["reason"]) if (content["mark"], content["code"]) == (mark, code) else ""
        except FileNotFoundError:
            return ""

    def leave_verdict(self, mark: str, code: str, reason: str) -> None:
        """Tells the trial, which may be running elsewhere, that a rule stops it."""
        content = {"mark": mark, "code": code, "reason": reason}
        write_atomically(self.folder / "verdict.json", json.dumps(content))

    def spec_json(self) -> str | None:
        """The trial's content as it was written when it first ran."""
        try:
            return (self.folder / "trial.json").read_text()
        except FileNotFoundError:
            return None
