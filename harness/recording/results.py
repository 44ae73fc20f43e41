"""The results folder as a whole: its trials by hash and its grids by name."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from pathlib import Path

from harness.recording.records import RecordsError, Result, TrialRecords


class Results:
    """The results folder.

    Raises:
        RecordsError: if it is not, and cannot become, a folder of this machine.
    """

    def __init__(self, folder: Path | str) -> None:
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):  # of the two slashes a path keeps one
            raise RecordsError(f"--results: found {folder}, allowed: a folder; object stores are not supported yet")
        try:
            self.folder = Path(folder).resolve()
            there = stat.S_ISDIR(self.folder.stat().st_mode)
        except FileNotFoundError:
            there = True  # it is made when something is first written
        except (OSError, RuntimeError) as error:  # below a file, a name that is too long, a circle of links
            raise RecordsError(f"--results: found {folder}, allowed: a folder ({error})") from error
        if not there:
            raise RecordsError(f"--results: found {folder}, which is a file, allowed: a folder")

    def trial(self, hash: str) -> TrialRecords:
        """One trial's records."""
        return TrialRecords(self.folder, hash)

    def results(self, hashes: Iterable[str]) -> dict[str, Result]:
        """The results of those trials that have one."""
        found = ((hash, self.trial(hash).result()) for hash in hashes)
        return {hash: result for hash, result in found if result is not None}

    def grids(self) -> list[str]:
        """The names of the grids that were run into it."""
        folder = self.folder / "grids"
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def grid(self, name: str) -> Path:
        """The folder of a grid: its file, plan, environment and submissions."""
        return self.folder / "grids" / name
