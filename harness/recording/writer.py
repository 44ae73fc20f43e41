"""The one writer to MLflow: a process beside the driver that follows the records and costs the grid next to nothing.

It ends after a last pass once its standard input closes, which it does when the driver ends, however that ends. A tracking
server that is down, slow or answering errors is tried again at growing intervals; what is missing at the end is said then,
and `harness sync` brings it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.recording.grids import sync_command
from harness.recording.records import RecordsError
from harness.recording.results import Results
from harness.recording.store import TrackingError
from harness.recording.tracking import Projection, Report, recorded

EVERY = 1.0
"""Seconds between passes, at least; a pass that took long is followed by a longer rest."""
LONGEST = 60.0
"""Seconds between attempts to reach a store that does not answer, at most."""
PATIENCE = {"server": 60.0, "file": 600.0}
"""Seconds that the last pass may take beyond the end of the grid: a server may be slow for ever, a file of SQLite is not."""
WORKERS_END = 30.0
"""Seconds that the workers of a driver that died are given to end."""


@dataclass
class Writer:
    """Follows the records of a grid.

    Args:
        ended: set once the last pass shall be made.
        orphaned: whether the driver died.
    """

    results: Results
    grid: str
    tracking: str | None
    ended: threading.Event
    orphaned: Callable[[], bool] = lambda: False
    _projection: Projection | None = None
    _shown: set[str] = field(default_factory=set)

    def follow(self) -> Report:
        """Projects until the grid has ended, and once more."""
        try:
            self._until_ended()
            return self._last_pass()
        finally:
            self._close()

    def _until_ended(self) -> None:
        wait = EVERY
        while not self.ended.is_set():
            began = time.monotonic()
            self._pass(lambda: not self.ended.is_set(), everything=self._projection is None, driven=True)
            took = time.monotonic() - began
            wait = max(EVERY, 2 * took) if self._projection else min(LONGEST, 2 * wait)
            self._rest(wait)

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.ended.wait(EVERY):
            if self.orphaned():  # a stray child of the driver may keep our input open
                self.ended.set()

    def _last_pass(self) -> Report:
        began = time.monotonic()
        limit = began + patience(self.tracking)
        while True:
            report = self._pass(lambda: time.monotonic() < limit, everything=True, driven=False)
            if not (report.running and self.orphaned() and time.monotonic() < began + WORKERS_END):
                return report
            time.sleep(EVERY)

    def _pass(self, go_on: Callable[[], bool], *, everything: bool, driven: bool) -> Report:
        try:
            if self._projection is None:  # the writer of a driver that died may be at it a little longer
                wait = WORKERS_END + EVERY if self.ended.is_set() else 0.0
                self._projection = Projection(self.results, self.grid, self.tracking, wait)
            report = self._projection.bring_up_to_date(go_on, everything=everything, driven=driven)
            if not report.pending:
                with contextlib.suppress(
                    OSError
                ):  # the driver tells the lag by its time; a full disk is told elsewhere
                    (self.results.grid(self.grid) / "tracking.mark").touch()
            return report
        except (TrackingError, RecordsError) as error:
            problem = str(error)
        self._close()
        return Report(pending=len(recorded(self.results, self.grid) - self._shown), problem=problem)

    def _close(self) -> None:
        """Lets go of the store: the next pass opens it anew."""
        if self._projection:
            self._shown |= self._projection.settled
            self._projection.close()
        self._projection = None


def patience(tracking: str | None) -> float:
    """Seconds of the last pass; without an address the store is the results folder's own SQLite file.

    >>> [patience(uri) for uri in (None, "sqlite:///runs.db", "https://mlflow", "postgresql+psycopg2://db/mlflow")]
    [600.0, 600.0, 60.0, 60.0]
    """
    return PATIENCE["file" if (tracking or "sqlite").startswith("sqlite") else "server"]


def watch_input(ended: threading.Event) -> None:
    """Sets the event once standard input closes."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        ended.set()

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """The process: `python -m harness.recording.writer --results FOLDER --grid NAME [--tracking URI]`."""
    parser = argparse.ArgumentParser(prog="python -m harness.recording.writer")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--grid", required=True)
    parser.add_argument("--tracking")
    options = parser.parse_args()
    results, driver = Results(options.results), os.getppid()
    ended = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which then closes our input
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    watch_input(ended)
    os.nice(19)
    terminal = os.dup(2)
    log = os.open(results.grid(options.grid) / "writer.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):  # what libraries print is no news for whoever watches the grid
        os.dup2(log, stream)
    again = sync_command(options.grid, results.folder, options.tracking)
    writer = Writer(results, options.grid, options.tracking, ended, lambda: os.getppid() != driver)
    try:
        report = writer.follow()
    except Exception as error:
        os.write(terminal, f"MLflow: the writer failed ({error}). Next: {again}\n".encode())
        raise
    if report.pending:
        told = f"MLflow: {report.pending} trials are not, or not fully, projected ({report.problem})"
        os.write(terminal, f"{told}. Next: {again}\n".encode())
    return 1 if report.pending else 0


if __name__ == "__main__":
    sys.exit(main())
