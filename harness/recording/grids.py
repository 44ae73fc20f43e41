"""What a grid leaves in the results folder: each submission's file, plan and environment.

    results/grids/<grid>/submissions/<number>/submission.json   who ran it, when, with which command
    results/grids/<grid>/submissions/<number>/grid.yaml         the grid file as it was written
    results/grids/<grid>/submissions/<number>/plan.json         the trials and the cells left out
    results/grids/<grid>/submissions/<number>/environment.json  versions, commit, hardware

Whoever shows a grid needs this folder and the records of its trials, and nothing else: no registry, no plugin, no torch.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from harness.recording.records import RecordsError, intact, write_atomically
from harness.recording.results import Results


@dataclass(frozen=True)
class SubmittedTrial:
    """A trial of a grid, and how the grid calls it."""

    hash: str
    spec: dict[str, Any]
    """The trial's content, as in its `trial.json`."""
    task_label: str
    method_label: str
    cell: str
    """What its seeds share: `digits/mlp · adamw · lr=0.001`."""
    seed: str
    code: str
    """The code digest that the plan asks for."""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """A trial from its mapping; what a later version added is left aside."""
        return cls(**{field.name: content[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Submission:
    """One submission of a grid: a folder that is written once, but for its end."""

    folder: Path

    @property
    def number(self) -> int:
        """Submissions of a grid count from 1."""
        return int(self.folder.name)

    def read(self, name: str) -> Any:
        """The content of one of its JSON files.

        Raises:
            RecordsError: if it cannot be read.
        """
        file, advice = self.folder / name, f"delete {self.folder}, and the grid counts as never submitted that time"
        try:
            with intact(file, advice):
                return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RecordsError(f"{file}: found no such file; {advice}") from error

    @cached_property
    def about(self) -> dict[str, Any]:
        """Command, user, host, process, when it started; once it has ended, when and how."""
        content: dict[str, Any] = self.read("submission.json")
        return content

    def trials(self) -> list[SubmittedTrial]:
        """The trials of the plan, in its order."""
        return [SubmittedTrial.of(content) for content in self.read("plan.json")["trials"]]

    def left_out(self) -> list[dict[str, Any]]:
        """The cells left out of the plan, each with its reason."""
        cells: list[dict[str, Any]] = self.read("plan.json")["left_out"]
        return cells

    def close(self, status: str) -> None:
        """Notes when and how the submission ended."""
        content = self.about | {"ended": time.time(), "status": status}
        write_atomically(self.folder / "submission.json", json.dumps(content, indent=1))


def open_submission(
    results: Results,
    name: str,
    *,
    grid_text: str,
    trials: Sequence[Mapping[str, Any]],
    left_out: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
) -> Submission:
    """Notes that a grid is being run: called before its first trial starts.

    Args:
        name: the grid's name.
        trials: all trials of the plan, each with the fields of `SubmittedTrial`.
        left_out: the cells left out, each with its reason.
    """
    known = submissions(results, name)
    number = known[-1].number + 1 if known else 1
    submission = Submission(results.grid(name) / "submissions" / f"{number:04d}")
    plan = {"trials": [dict(trial) for trial in trials], "left_out": [dict(cell) for cell in left_out]}
    write_atomically(submission.folder / "grid.yaml", grid_text)
    write_atomically(submission.folder / "plan.json", json.dumps(plan))
    write_atomically(submission.folder / "environment.json", json.dumps(dict(environment), indent=1))
    about = {
        "command": shlex.join([Path(sys.argv[0]).name, *map(without_password, sys.argv[1:])]),
        "user": _user(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": time.time(),
    }
    write_atomically(submission.folder / "submission.json", json.dumps(about, indent=1))
    return submission


SIGNED_IN = re.compile(
    r"""(?<=://)(?:
        [^/@\s:\[]*:(?!\d{1,5}/)(?:[^\s?]*@|[^\s@]*@)  # a password may hold "/", "@" or "?"; after a port comes a path
        |[^/?\#\s]+@  # a user or a token alone
    )""",
    re.VERBOSE,
)
ASKED = re.compile(r"(?<=[?&;])([\w.-]*(?:passw|pwd|token|secret)[\w.-]*=)[^&;#\s]+", re.IGNORECASE)


def sync_command(grid: str | None, results: Path, tracking: str | None) -> str:
    """The command that brings MLflow up to date: with a grid, or all of them, from this folder and into this store.

    >>> sync_command("mine", Path("/runs"), "http://me:secret@mlflow:5000")
    'harness sync mine --results /runs --tracking http://mlflow:5000'
    """
    words = ["harness", "sync", *([grid] if grid else []), "--results", str(results)]
    return shlex.join([*words, *(["--tracking", without_password(tracking)] if tracking else [])])


def without_password(text: str) -> str:
    """A text without the users and passwords that addresses in it may carry.

    >>> without_password("postgresql://me:secret@host/runs")
    'postgresql://host/runs'
    >>> without_password("postgresql://host/runs?user=me&password=secret")
    'postgresql://host/runs?user=me&password='
    """
    return ASKED.sub(r"\1", SIGNED_IN.sub("", text))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number without a name
        return str(os.getuid())


def submissions(results: Results, name: str) -> list[Submission]:
    """The submissions of a grid, in order: those whose folder is complete."""
    folder = results.grid(name) / "submissions"
    if name not in results.grids() or not folder.is_dir():
        return []
    numbered = sorted((child for child in folder.iterdir() if child.name.isdigit()), key=lambda child: int(child.name))
    return [Submission(child) for child in numbered if (child / "submission.json").exists()]


def some_submissions(results: Results, name: str) -> list[Submission]:
    """The submissions of a grid that has some, in order.

    Raises:
        RecordsError: if it has none.
    """
    found = submissions(results, name)
    if not found:
        raise RecordsError(f"{results.grid(name)}: holds no submission; run the grid first")
    return found


def held(folder: Path) -> bool:
    """Whether a process holds the lock of this folder: a driver that of its grid, a worker that of its trial."""
    if not (folder / "lock").exists():
        return False
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
