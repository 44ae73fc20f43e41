"""Who writes what a trial leaves in the results folder: one attempt at a time, under the trial's lock.

Every attempt writes in a folder of its own and takes the committed chunks of the one before it by name, so an older
attempt that wakes up again writes where nobody reads.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from harness.recording.log import tell
from harness.recording.records import (
    Commit,
    Locked,
    Over,
    RecordsError,
    Result,
    TrialRecords,
    storage,
    write_atomically,
)


def hold(folder: Path, wait: float) -> BaseFileLock:
    """Takes the lock of a trial's folder; it goes with the process that holds it.

    Raises:
        Locked: if another process keeps it for `wait` seconds.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        lock.acquire(timeout=wait)
    except Timeout as error:
        holder = (folder / "holder").read_text() if (folder / "holder").exists() else "unknown"
        raise Locked(f"trial {folder.name} is being run by another process ({holder})") from error
    except OSError as error:
        raise RecordsError(f"{folder}: cannot be written ({error})") from error
    return lock


def end_without_result(results: Path, result: Result, spec_json: str, since: float = 0.0) -> Result:
    """Writes the result of a trial whose process left none; its checkpoint stays, for trials that are tried again.

    Args:
        results: the results folder.
        result: how it ended.
        spec_json: what the trial is.
        since: one of the same code that was left since then, as by another grid, is kept. An older one, or one of other
            code, is what this run was to replace: its numbers are not this run's.
    """
    trial = TrialRecords(results, result.hash)
    lock = hold(trial.folder, 5.0)
    try:
        there = trial.result()
        if there is not None and there.code == result.code and there.ended >= since:
            return there
        write_atomically(trial.folder / "trial.json", spec_json, durable=False)
        if attempts := trial.attempts():
            folder = trial.folder / str(attempts[-1])
            tell(folder, "ended", "error", status=result.status, reason=result.reason)
        _write_result(trial, result)
        return result
    finally:
        lock.release()


def _write_result(trial: TrialRecords, result: Result) -> None:
    write_atomically(trial.folder / "result.json", json.dumps(asdict(result), allow_nan=False, sort_keys=True))


class Attempt:
    """One attempt at a trial: the only writer of its records.

    Entering takes the trial's lock, and numbers the attempt after those before it. What earlier attempts committed is
    taken up if it was computed by the same code, with the same values taken from other trials, and its checkpoint is there,
    and left behind otherwise.

    Args:
        values: what the trial takes from the trials that it requires, by path.
        wait: seconds that another process which holds the trial is given to let go.
        since: a trial that has ended for good under the same code since then is left as it is.

    Raises:
        Locked: if another process holds the trial.
        Over: if the trial has ended since.
        RecordsError: if what was committed is damaged, or cannot be written.
    """

    def __init__(
        self,
        results: Path,
        hash: str,
        spec_json: str,
        code: str,
        *,
        values: Mapping[str, Any] | None = None,
        wait: float = 30.0,
        since: float = math.inf,
    ) -> None:
        self.trial = TrialRecords(results, hash)
        self.code, self.values = code, dict(values or {})
        self._spec_json = spec_json
        self._wait, self._since = wait, since
        self._pending: list[str] = []
        self.state = Commit(attempt=0)

    def __enter__(self) -> Attempt:
        folder = self.trial.folder
        self._lock = hold(folder, self._wait)
        try:
            self._begin(folder)
        except BaseException:
            self._lock.release()
            raise
        return self

    def _begin(self, folder: Path) -> None:
        if self.trial.over(self.code, self._since):  # by whoever held the lock until now
            raise Over(f"trial {folder.name} has ended meanwhile")
        self.trial.commit()  # a damaged one is told before anything is written
        number = (self.trial.attempts() or [0])[-1] + 1
        holder = f"host {socket.gethostname()}, process {os.getpid()}, attempt {number}"
        write_atomically(folder / "holder", holder, durable=False)
        write_atomically(folder / "trial.json", self._spec_json, durable=False)
        self.folder = folder / str(number)
        with storage(self.folder):  # before the commit is read: from here on no earlier attempt deletes what it names
            self.folder.mkdir()
        self.state = self._taken_up(number)
        with storage(folder / "result.json"):
            (folder / "result.json").unlink(missing_ok=True)

    def _taken_up(self, number: int) -> Commit:
        """Where this attempt begins."""
        before = self.trial.commit()
        if before and (before.code, before.values) == (self.code, self.values) and before.checkpoint:
            return Commit(**asdict(before) | {"attempt": number, "chunks": before.chunks[: before.covered]})
        return Commit(number, self.code, self.values, started=time.time())

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def record(self, record: dict[str, Any]) -> None:
        """Adds a record; it counts from the next commit on."""
        self._pending.append(json.dumps(record, allow_nan=False))

    def rewind(self) -> None:
        """Forgets the records since the last commit: the trial starts from there once more."""
        self._pending.clear()

    def tell(self, event: str, level: str = "info", **facts: Any) -> None:
        """Adds an event to the attempt's structured log."""
        tell(self.folder, event, level, attempt=self.state.attempt, **facts)

    def keep(self, name: str, content: bytes) -> None:
        """Writes a file that stays with the trial after its end, such as a substituted model's weights."""
        write_atomically(self.trial.folder / name, content)

    def path(self, name: str | None) -> Path | None:
        """The file of a checkpoint named in a commit."""
        return self.trial.folder / name if name else None

    def commit(self, step: int, checkpoint: bytes | None = None, best: bytes | None = None) -> None:
        """Makes the pending records count, together with the checkpoint that stands behind them.

        Raises:
            Locked: if a later attempt has taken over. It may have begun from the commit before or from this one, and both
                checkpoints are then there: an old one is deleted once nobody has come who could have read its name.
        """
        self._check_newest()
        obsolete = []
        if self._pending:
            chunk = f"{self.state.attempt}/chunk-{len(self.state.chunks):05d}.jsonl"
            write_atomically(self.trial.folder / chunk, "\n".join(self._pending) + "\n")
            self.state.chunks.append(chunk)
            self._pending.clear()
        for kind, content in (("best", best), ("checkpoint", checkpoint)):
            if content is not None:
                name = f"{self.state.attempt}/{'last' if kind == 'checkpoint' else 'best'}-{step}.pt"
                if (old := getattr(self.state, kind)) and old != name:
                    obsolete.append(old)
                write_atomically(self.trial.folder / name, content)
                setattr(self.state, kind, name)
        if checkpoint is not None:
            self.state.covered = len(self.state.chunks)
        self.state.step = step
        self._write_commit()
        self._delete(obsolete)

    def finish(self, result: Result, keep_checkpoints: bool = False) -> None:
        """Commits what is pending and writes the result. Checkpoints go, unless the trial may still go on from them.

        Raises:
            Locked: if a later attempt has taken over.
        """
        self.commit(result.steps)
        self._check_newest()
        _write_result(self.trial, result)
        if keep_checkpoints:
            return
        checkpoints = [name for name in (self.state.checkpoint, self.state.best) if name]
        if checkpoints:
            self.state.checkpoint = self.state.best = None
            self._write_commit()
        self._delete(checkpoints)

    def _check_newest(self) -> None:
        if self.trial.attempts()[-1] != self.state.attempt:
            raise Locked(f"trial {self.trial.hash}: a later attempt has taken over")

    def _delete(self, checkpoints: Sequence[str]) -> None:
        """Deletes what the commit on the disk no longer names: only a later attempt could need it, and none has come."""
        if checkpoints:
            self._check_newest()
        for name in checkpoints:
            with storage(self.trial.folder / name):
                (self.trial.folder / name).unlink(missing_ok=True)

    def _write_commit(self) -> None:
        write_atomically(self.folder / "commit.json", json.dumps(asdict(self.state)))
