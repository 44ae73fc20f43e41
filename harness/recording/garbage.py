"""What the results folder holds that nothing needs any more: what `harness gc` shows, and frees when told to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.recording.grids import held, submissions
from harness.recording.log import LOG
from harness.recording.records import TrialRecords
from harness.recording.results import Results


@dataclass(frozen=True)
class Garbage:
    """Something that can go: a file or a folder, how large it is, and why nothing needs it."""

    path: Path
    bytes: int
    reason: str

    def free(self) -> None:
        """Deletes it."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def garbage(results: Results, everything: bool = False) -> list[Garbage]:
    """What can go. Nothing that a process holds is touched, and no result is.

    Args:
        results: the results folder.
        everything: also whole trials that no submission of any grid names.

    Raises:
        RecordsError: if a submission cannot be read.
    """
    names = results.grids()
    named, started_from = _named(results, names)
    running = any(held(results.grid(name)) for name in names)
    found = [] if running else list(_left_by_tune(results))
    trials = results.folder / "trials"
    for folder in sorted(trials.iterdir()) if trials.is_dir() else []:
        if held(folder):
            continue
        if folder.name not in named:
            found += [_of(folder, "no grid names this trial")] if everything else []
            continue
        found += _of_trial(results.trial(folder.name), started_from.get(folder.name, set()))
    return found


def _named(results: Results, grids: list[str]) -> tuple[set[str], dict[str, set[str]]]:
    """The trials that grids name, and the checkpoints that trials of their newest submissions start from."""
    named: set[str] = set()
    started_from: dict[str, set[str]] = {}
    for grid in grids:
        for submission in submissions(results, grid):
            for trial in submission.trials():
                named.add(trial.hash)
                for required in trial.spec["requires"]:
                    if required["path"] == "start":
                        started_from.setdefault(required["hash"], set()).add(required["taken"])
    return named, started_from


def _left_by_tune(results: Results) -> Iterator[Garbage]:
    """Ray Tune's own folders: a driver that is killed leaves its last one."""
    for folder in sorted(results.folder.glob("tune-*")):
        yield _of(folder, "left by a driver that was killed")


def _of_trial(trial: TrialRecords, started_from: set[str]) -> Iterator[Garbage]:
    commit, result = trial.commit(), trial.result()
    for path in sorted((trial.folder / "kept").glob("*.pt")):
        if path.stem not in started_from:
            yield _of(path, "no trial starts from it")
    if commit is None:
        return
    needed = {name for name in (*commit.chunks, commit.checkpoint, commit.best) if name}
    if result is not None and result.status.good and result.status != "screened":
        needed -= {commit.checkpoint, commit.best}
    for attempt in trial.attempts():
        for path in sorted((trial.folder / str(attempt)).iterdir()):
            name = f"{attempt}/{path.name}"
            if path.suffix in (".jsonl", ".pt") and path.name != LOG and name not in needed:
                yield _of(path, "a later attempt has taken over" if path.suffix == ".jsonl" else "its trial is done")


def _of(path: Path, reason: str) -> Garbage:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Garbage(path, sum(file.stat().st_size for file in files), reason)
