"""Runs a plan: what is not done goes to the scheduler, stage by stage, with the one writer to MLflow beside it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.planning.plan import Plan, PlannedTrial
from harness.planning.survey import peak_memory, survey
from harness.planning.taking import Missing, take
from harness.recording.attempts import end_without_result, hold
from harness.recording.environment import environment
from harness.recording.grids import Submission, open_submission, submissions, sync_command
from harness.recording.records import Locked, RecordsError, Result, Status
from harness.recording.results import Results
from harness.recording.writer import patience
from harness.running.forkserver import socket_folder
from harness.running.metrics import Metrics
from harness.running.progress import Cell, Progress
from harness.running.scheduling import (
    Infeasible,
    Infrastructure,
    Listener,
    Outcome,
    Unwritable,
    check_feasible,
    cluster,
    run_units,
    this_node,
)
from harness.running.stalling import alive
from harness.running.units import Unit, UnitTrial, packed, stack
from harness.screening import NEIGHBOURS, Screening
from harness.seconds import amount

MARGIN = 120.0
"""Seconds beyond its patience that the writer to MLflow has to end: one request may still be waiting for its answer."""


@dataclass(frozen=True)
class Options:
    """How to run a plan."""

    plugins: Sequence[Path] = ()
    tracking: str | None = None
    address: str | None = None
    cpus: int | None = None
    keep_stale: bool = False
    retry_failed: bool = False
    commit_every: float = 15.0
    node_types: Sequence[dict[str, float]] = ()
    """What each kind of node has that the cluster's autoscaler can add."""


@dataclass
class Run:
    """One run of a plan."""

    plan: Plan
    results: Results
    options: Options
    console: Console
    since: float
    """When the results folder was looked at: what other grids have finished since then is there already."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Bytes that a trial of a cell took before."""
    outcome: Outcome = field(default_factory=Outcome)
    screening: Screening | None = None
    """That of the plan, its thresholds fitted."""

    def execute(self, waiting: Sequence[PlannedTrial]) -> None:
        """Runs trials to their ends.

        Raises:
            Infeasible: if a request fits on no node; nothing has started.
            Unwritable: if the results folder cannot be written from the start; nothing has started.
            Infrastructure: if another driver runs this grid, or the results folder can no longer be written.
        """
        if self.options.address is None:
            check_feasible([trial.resources for trial in waiting], [this_node(self.options.cpus)])
        with self._held():
            try:
                self._run(waiting)
            except (RecordsError, OSError) as error:  # from here on, what cannot be written is the folder's trouble
                raise Infrastructure(f"{error}; a rerun goes on once that is mended") from error

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keeps other drivers from this grid.

        Raises:
            Unwritable: if the results folder cannot be written.
            Infrastructure: if another driver runs this grid.
        """
        try:
            lock = hold(self.results.grid(self.plan.name), 1.0)
        except Locked as error:
            raise Infrastructure(
                f"grid {self.plan.name} is being run by another driver on {self.results.folder}"
            ) from error
        except RecordsError as error:
            raise Unwritable(str(error)) from error
        try:
            yield
        finally:
            lock.release()

    def _run(self, waiting: Sequence[PlannedTrial]) -> None:
        self.console.print(
            f"{len(waiting)} of {amount(len(self.plan.trials), 'trial')} to run; starting Ray …", highlight=False
        )
        if self.options.address is None:  # other nodes are asked when a grid arrives there, and by `harness doctor`
            _check_socket_folder()
        with cluster(self.options.address, self.options.cpus) as ray:
            told = ray.nodes()
            check_feasible([trial.resources for trial in waiting], told, self.options.node_types)
            nodes = alive(told)
            slots = int(sum(node.get("CPU", 0) for node in nodes))
            submission = self._submission()
            progress = Progress(self.console, {trial.hash: _cell(trial, nodes) for trial in waiting}, slots)
            status = "interrupted"
            try:
                with self._writer(), progress:
                    self._stages(waiting, progress, nodes)
                status = "interrupted" if self.outcome.interrupted else "finished"
            finally:
                submission.close(status)
        if reason := self.outcome.unwritable():
            raise Infrastructure(f"{reason}; a rerun goes on once that is mended")

    def _submission(self) -> Submission:
        return open_submission(
            self.results,
            self.plan.name,
            grid_text=self.plan.grid_text,
            trials=[submitted(trial) for trial in self.plan.trials],
            left_out=[vars(left) for left in self.plan.left_out],
            environment=environment(),
        )

    def note(self) -> None:
        """Keeps a grid all of whose trials are there, so that it can be reported by its name and shown in MLflow.

        Raises:
            Unwritable: if the results folder cannot be written.
            Infrastructure: if another driver runs this grid.
        """
        with self._held():
            try:
                self._submission().close("finished")
            except RecordsError as error:
                raise Unwritable(str(error)) from error
        again = sync_command(self.plan.name, self.results.folder, self.options.tracking)
        self.console.print(f"All of its trials are there already. To show it in MLflow: {again}", soft_wrap=True)

    def _stages(self, waiting: Sequence[PlannedTrial], progress: Progress, nodes: Sequence[dict[str, float]]) -> None:
        hashes = {trial.hash for trial in waiting}
        listener = Metrics(progress, self.plan.name, len(hashes), self.results.grid(self.plan.name))
        scheduler = None
        if self.screening and self.screening.rule in NEIGHBOURS:
            from harness.running.neighbours import Neighbours

            scheduler = Neighbours(self.screening, self.plan, hashes, self.results)
        for stage in self.plan.stages:
            units = []
            for trial in stage:
                if trial.hash not in hashes:
                    continue
                try:
                    values = take(trial, self.plan, self.results.results(r.hash for r in trial.spec.requires))
                except Missing as missing:
                    listener.ended(trial.hash, self._end(trial, Status.BLOCKED, str(missing)))
                else:
                    keep = sorted(self.plan.kept.get(trial.hash, ()))
                    units.append(unit_of(trial, values, keep, self.screening, self.since))
            if units:
                settings = {
                    "results": str(self.results.folder),
                    "plugins": [str(plugin) for plugin in self.options.plugins],
                    "commit_every": self.options.commit_every,
                    "report_every": 1.0,
                    "slots": progress.slots,
                }
                units = [packed(unit, self.peaks.get(unit.cell, 0), nodes) for unit in stack(units, progress.slots)]
                self._take(run_units(units, settings, listener, scheduler), listener)
            if self.outcome.interrupted or self.outcome.unwritable():
                return

    def _take(self, outcome: Outcome, listener: Listener) -> None:
        planned = {trial.hash: trial for trial in self.plan.trials}
        self.outcome.ended |= outcome.ended
        self.outcome.interrupted |= outcome.interrupted
        ends = ((outcome.lost, Status.LOST), (outcome.out_of_memory, Status.OUT_OF_MEMORY))
        for units, status in ends:
            for trial in (trial for unit in units for trial in unit.trials if trial.hash not in outcome.ended):
                told = self._end(planned[trial.hash], status, "its worker was ended several times")
                listener.ended(trial.hash, told)

    def _end(self, trial: PlannedTrial, status: Status, reason: str) -> str:
        """Leaves the result of a trial that no worker is at; what is told of it."""
        now = time.time()
        result = Result(trial.hash, status, trial.code, started=now, ended=now, reason=reason)
        try:
            return end_without_result(self.results.folder, result, trial.spec.to_json(), self.since).status
        except Locked:  # another grid that names the trial is at it, and leaves its result
            return "locked"

    @contextmanager
    def _writer(self) -> Iterator[None]:
        """The one writer to MLflow, beside this process: it ends after a last pass once its input closes."""
        command = [sys.executable, "-m", "harness.recording.writer"]
        command += ["--results", str(self.results.folder), "--grid", self.plan.name]
        command += ["--tracking", self.options.tracking] if self.options.tracking is not None else []
        writer = subprocess.Popen(command, stdin=subprocess.PIPE)
        try:
            yield
        finally:
            assert writer.stdin is not None
            writer.stdin.close()
            try:
                writer.wait(patience(self.options.tracking) + MARGIN)
            except subprocess.TimeoutExpired:
                writer.kill()  # on SIGTERM it would make the pass that it hangs in
                writer.wait()
                again = sync_command(self.plan.name, self.results.folder, self.options.tracking)
                self.console.print(f"MLflow: the writer hangs and was ended. Next: {again}", soft_wrap=True)


def _check_socket_folder() -> None:
    """Refuses a place in which trials would get no process: each would be lost, and none could say why."""
    try:
        socket_folder()
    except OSError as error:
        raise Infrastructure(str(error)) from error


def unit_of(
    trial: PlannedTrial,
    values: dict[str, Any],
    keep: list[str],
    screening: Screening | None = None,
    since: float = math.inf,
) -> Unit:
    """A unit of one trial."""
    screen = screening.screen(trial.task_label) if screening else None
    shown = screen.to_json() if screen else ""
    carried = UnitTrial(trial.hash, trial.spec.to_json(), trial.code, values, keep, shown, since)
    return Unit([carried], trial.resources, trial.cell, trial.spec.stacked)


def submitted(trial: PlannedTrial) -> dict[str, Any]:
    """A trial as the writer to MLflow needs it."""
    return {
        "hash": trial.hash,
        "spec": json.loads(trial.spec.to_json()),
        "task_label": trial.task_label,
        "method_label": trial.method_label,
        "cell": trial.cell,
        "seed": trial.spec.seed_label,
        "code": trial.code,
    }


def run_plan(plan: Plan, results: Results, options: Options, console: Console, only: set[str] | None = None) -> Outcome:
    """Runs what is not done of a plan, or `only` some trials of it; with nothing to do it starts nothing, and writes nothing
    but a note of a grid that was never run, or that reads otherwise than when it was run last: its claims may have changed."""
    since = time.time()
    view = survey(plan, results, options.keep_stale, options.retry_failed)
    run = Run(plan, results, options, console, since, peak_memory(plan, view))
    waiting = view.to_run
    if only is not None:
        waiting = [trial for trial in waiting if trial.hash in only]
    if waiting:
        if plan.screening:
            from harness.judging.calibration_runs import fitted

            try:
                run.screening = fitted(plan.screening, plan.tasks, results)
            except ValueError as error:
                raise Infeasible(f"screening.{error}") from error
        run.execute(waiting)
    elif only is None and not _noted(plan, results):
        run.note()
    return run.outcome


def _noted(plan: Plan, results: Results) -> bool:
    """Whether the grid was run last as it is now."""
    found = submissions(results, plan.name)
    return bool(found) and (found[-1].folder / "grid.yaml").read_text(encoding="utf-8") == plan.grid_text


def _cell(trial: PlannedTrial, nodes: Sequence[Mapping[str, float]]) -> Cell:
    slots = trial.resources.at_once(nodes)
    return Cell(trial.task_label, trial.method_label, trial.spec.length, slots, trial.spec.stacked)
