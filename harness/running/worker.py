"""The Tune trainable: a small class that is reused and runs each unit in children of its warm process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import tune

from harness.recording.records import Status, TrialRecords
from harness.running.children import WarmHandle
from harness.running.units import Unit

OVER = (Status.FINISHED, Status.DIVERGED, Status.FAILED)
"""How a trial ends for good under one code: the survey hands none of these out, so a try of the same unit wrote it."""


class UnitLost(RuntimeError):
    """A trial was ended from outside: Tune takes the unit up again, from its last commit."""


class Worker(tune.Trainable):
    """Runs units one after another; `step` returns about once a second, so that Tune can stop a unit.

    A configuration names the units to run, one after another. `setup` takes `table`, the units as text by name, and
    `settings`: `results`, `plugins`, `commit_every`, `report_every`, and `since`, when this stage of the run began.
    """

    def setup(  # type: ignore[override]  # Tune hands over what `with_parameters` was given
        self, config: dict[str, Any], table: dict[str, str], settings: dict[str, Any]
    ) -> None:
        self._table, self._settings = table, settings
        self._warm: WarmHandle | None = None
        self._begin(config["units"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._running is not None:  # a scheduler stopped the unit: its trial commits and ends with the process
            self.cleanup()
            self._warm = None
        self._begin(new_config["units"])
        return True

    def _begin(self, names: list[str]) -> None:
        self._unit = Unit.of([Unit.from_json(self._table[name]) for name in names])
        self._waiting = list(self._unit.trials)
        self._running: str | None = None
        self._ended: dict[str, tuple[str, float]] = {}

    def _handle(self) -> WarmHandle:
        """The warm process, started anew where it is missing or was made for other resources."""
        if self._warm is not None and self._warm.resources != self._unit.resources:
            self._warm.stop()
            self._warm = None
        if self._warm is None:
            self._warm = WarmHandle(
                Path(self._settings["results"]),
                [Path(plugin) for plugin in self._settings["plugins"]],
                self._unit.resources,
                self._settings["commit_every"],
            )
        return self._warm

    def step(self) -> dict[str, Any]:
        """Goes on with the unit until something is to be told.

        Raises:
            UnitLost: if a trial's process was ended from outside.
        """
        warm = self._handle()
        if self._running is None:
            self._pass_over_done()
            self._start_next(warm)
        step = 0
        for event in warm.events(self._settings["report_every"]):
            if event["event"] == "progress":
                step = event["step"]
            elif event["event"] == "ended":
                self._end(event)
                self._start_next(warm)
        return {"done": self._running is None, "running": self._running or "", "at": step, "ended": self._ended}

    def _pass_over_done(self) -> None:
        """Leaves out what an earlier try of this unit has finished: a worker that died takes its unit up from the start."""
        for trial in list(self._waiting):
            result = TrialRecords(Path(self._settings["results"]), trial.hash).result()
            if result is not None and result.status in OVER and result.ended >= self._settings["since"]:
                self._waiting.remove(trial)
                self._ended[trial.hash] = result.status.value, result.ended - result.started

    def _start_next(self, warm: WarmHandle) -> None:
        if self._waiting:
            trial = self._waiting.pop(0)
            self._running, self._since = trial.hash, time.monotonic()
            warm.start(trial)

    def _end(self, event: dict[str, Any]) -> None:
        if event["status"] == "lost":
            raise UnitLost(f"trial {event['hash']}: {event['reason']}")
        self._ended[event["hash"]] = event["status"] or event["reason"], time.monotonic() - self._since
        self._running = None

    def cleanup(self) -> None:
        if self._warm is not None:
            self._warm.stop()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: checkpoints are the harness's own."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: checkpoints are the harness's own."""
