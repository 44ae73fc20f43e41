"""The Tune trainable: a small class that is reused and runs each unit in children of its warm process."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from harness.recording.records import TrialRecords
from harness.running.children import WarmHandle
from harness.running.gang import Gang
from harness.running.units import APART, Unit, UnitTrial


class UnitLost(RuntimeError):
    """A trial was ended from outside: Tune takes the unit up again, from its last commit."""


class Worker(tune.Trainable):
    """Runs units one after another; `step` returns about twice a second, so that Tune can stop a unit.

    A configuration names the units to run, one after another. `setup` takes `table`, the units as text by name, and
    `settings`: `results`, `plugins`, `commit_every`, and `report_every`, the seconds after which `step` returns even where
    nothing was heard.
    """

    def setup(  # type: ignore[override]  # Tune hands over what `with_parameters` was given
        self, config: dict[str, Any], table: dict[str, str], settings: dict[str, Any]
    ) -> None:
        self._table, self._settings = table, settings
        self._gang: Gang | None = None
        self._begin(config["units"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._running:  # a scheduler stopped the unit: its trial commits and ends with the process
            self.cleanup()
            self._gang = None
        self._begin(new_config["units"])
        return True

    def _begin(self, names: list[str]) -> None:
        units = [Unit.from_json(self._table[name]) for name in names]
        self._resources = units[0].resources
        self._waiting = [process for unit in units for process in unit.processes]
        self._running: list[UnitTrial] = []
        self._ended: dict[str, tuple[str, float]] = {}

    def _processes(self) -> Gang:
        """The warm processes, started anew where they are missing or were made for other resources."""
        if self._gang is not None and self._gang.resources != self._resources:
            self._gang.stop()
            self._gang = None
        if self._gang is None:
            settings = self._settings
            plugins = [Path(plugin) for plugin in settings["plugins"]]
            make = partial(WarmHandle, Path(settings["results"]), plugins, self._resources, settings["commit_every"])
            self._gang = Gang(make, self._resources)
        return self._gang

    def step(self) -> dict[str, Any]:
        """Goes on with the unit until something is to be told.

        Raises:
            UnitLost: if a trial's process was ended from outside.
        """
        gang = self._processes()
        if not self._running:
            self._pass_over_done()
            self._start_next(gang)
        step = 0
        for event in gang.events(self._settings["report_every"]):
            if event["event"] == "progress":
                step = event["step"]
            elif event["event"] == "ended":
                self._end(event)
                if not self._running:
                    self._start_next(gang)
        running = [trial.hash for trial in self._running]
        return {"done": not running, "running": running, "at": step, "ended": self._ended}

    def _pass_over_done(self) -> None:
        """Leaves out what has ended meanwhile: a unit is taken up from its start, and other grids share trials."""
        for trials in self._waiting:
            for trial in list(trials):
                records = TrialRecords(Path(self._settings["results"]), trial.hash)
                if result := records.over(trial.code, trial.since):
                    trials.remove(trial)
                    self._ended[trial.hash] = result.status.value, result.ended - result.started

    def _start_next(self, gang: Gang) -> None:
        self._waiting = [trials for trials in self._waiting if trials]
        if self._waiting:
            self._running = self._waiting.pop(0)
            self._since, self._width = time.monotonic(), len(self._running)
            gang.start(self._running)

    def _end(self, event: dict[str, Any]) -> None:
        if event["status"] == "lost":
            raise UnitLost(f"trial {event['hash']}: {event['reason']}")
        (trial,) = (trial for trial in self._running if trial.hash == event["hash"])
        self._running = [other for other in self._running if other is not trial]
        if event["status"] == APART:
            self._waiting.insert(0, [trial])
        else:
            seconds = (time.monotonic() - self._since) / self._width
            self._ended[trial.hash] = event["status"] or event["reason"], seconds

    def cleanup(self) -> None:
        if self._gang is not None:
            self._gang.stop()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: checkpoints are the harness's own."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: checkpoints are the harness's own."""
