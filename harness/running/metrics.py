"""Counters and gauges of a grid through Ray's own exporter: each node serves them to Prometheus, with the prefix `ray_`."""

from __future__ import annotations

import time
from pathlib import Path

from harness.running.scheduling import Listener

EVERY = 5.0
"""Seconds between two looks at how far MLflow lags."""


class Metrics:
    """A `Listener` that counts, and passes on what it hears.

    `harness_trials` counts ends by status, each trial once in each; `harness_waiting` and `harness_running` are what is left
    and at work. A trial may start several times, and one that is locked waits for another try.
    `harness_writer_lag` is seconds since the writer to MLflow last had nothing left to do.

    Args:
        listener: hears all of it too.
        grid: the tag of every number.
        waiting: trials that are to run.
        folder: the grid's, where the writer leaves a mark after each complete pass.
    """

    def __init__(self, listener: Listener, grid: str, waiting: int, folder: Path) -> None:
        from ray.util.metrics import Counter, Gauge

        self._listener, self._trials, self._folder = listener, waiting, folder
        self._running: set[str] = set()
        self._over: set[str] = set()
        self._counted: set[tuple[str, str]] = set()
        self._looked = 0.0
        self._since = time.time()
        tags = {"tag_keys": ("grid",)}
        self._ended = Counter("harness_trials", "Trials that have ended, by status.", tag_keys=("grid", "status"))
        self._gauges = {
            "waiting": Gauge("harness_waiting", "Trials that no worker is at and that have not ended.", **tags),
            "running": Gauge("harness_running", "Trials that a worker is at.", **tags),
            "lag": Gauge("harness_writer_lag", "Seconds since MLflow was up to date.", **tags),
        }
        for metric in (self._ended, *self._gauges.values()):
            metric.set_default_tags({"grid": grid})
        self._tell()

    def started(self, hash: str) -> None:
        self._running.add(hash)
        self._tell()
        self._listener.started(hash)

    def moved(self, hash: str, step: int) -> None:
        self._listener.moved(hash, step)

    def lost(self, hash: str) -> None:
        self._running.discard(hash)
        self._tell()
        self._listener.lost(hash)

    def ended(self, hash: str, outcome: str) -> None:
        status = outcome.split(":")[0]
        self._running.discard(hash)
        if status != "locked":
            self._over.add(hash)
        if (hash, status) not in self._counted:
            self._counted.add((hash, status))
            self._ended.inc(tags={"status": status})
        self._tell()
        self._listener.ended(hash, outcome)

    def tick(self) -> None:
        if time.monotonic() - self._looked > EVERY:
            self._looked = time.monotonic()
            self._gauges["lag"].set(self.lag())
        self._listener.tick()

    def lag(self) -> float:
        """Seconds since the writer's last complete pass, or since the start if there was none."""
        try:
            since = max(self._since, (self._folder / "tracking.mark").stat().st_mtime)
        except OSError:
            since = self._since
        return max(0.0, time.time() - since)

    def _tell(self) -> None:
        self._gauges["waiting"].set(self._trials - len(self._running | self._over))
        self._gauges["running"].set(len(self._running))
