"""MLflow as a projection of the results folder: it can be deleted, lag behind or go away, and nothing is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from filelock import FileLock, Timeout

from harness.recording.grids import Submission, SubmittedTrial, held, some_submissions, submissions, without_password
from harness.recording.overview import grid_content, read_report
from harness.recording.projection import (
    RUNNING,
    Content,
    Snapshot,
    Summary,
    files,
    final_points,
    points,
    snapshot,
    trial_content,
)
from harness.recording.records import RecordsError
from harness.recording.results import Results
from harness.recording.store import NO_TELEMETRY, Refused, Run, Store, TrackingError, Unavailable

REFUSALS = 10
"""So many runs refused, and none taken, is trouble with the store and not with the runs."""


@dataclass
class Report:
    """What a pass did."""

    runs: int = 0
    """Runs of the grid that show what the records say."""
    changed: int = 0
    """Those of them that did not before."""
    running: int = 0
    """Trials that some process is at."""
    pending: int = 0
    """Trials that are not, or not yet fully, in MLflow."""
    problem: str = ""
    """Why, in one line."""

    def __str__(self) -> str:
        told = f"{self.runs} runs in MLflow, {self.changed} of them brought up to date"
        return f"{told}; {self.pending} not projected ({self.problem})" if self.pending else told


def sync(results: Results, grid_name: str, tracking_uri: str | None = None) -> Report:
    """Brings MLflow up to date with the records of one grid; a second time changes nothing.

    Args:
        tracking_uri: where MLflow is; `mlflow.db` in the results folder unless given.

    Raises:
        TrackingError: if the store cannot be opened or stops answering, or another process is projecting the grid.
        RecordsError: if the grid's folder cannot be read.
    """
    projection = Projection(results, grid_name, tracking_uri, wait=10.0)
    try:
        return projection.bring_up_to_date()
    finally:
        projection.close()


class Projection:
    """One grid in one store, brought up to date pass by pass by the only process that does so.

    The store is asked for the runs of the experiment once, when the projection is opened.

    Raises:
        TrackingError: if the store cannot be opened, or another process is projecting the grid.
        RecordsError: if the grid's folder cannot be read.
    """

    def __init__(self, results: Results, grid: str, tracking_uri: str | None = None, wait: float = 0.0) -> None:
        self.results, self.grid = results, grid
        self.submissions = some_submissions(results, grid)
        self.user = str(self.submissions[0].about["user"])
        self.trials = submitted(self.submissions)
        self._planned = {trial.hash for trial in self.submissions[-1].trials()}
        self._seen: dict[str, Summary] = {}
        self._lock = FileLock(results.grid(grid) / "tracking.lock")
        try:
            self._lock.acquire(timeout=wait)
        except Timeout as error:
            raise Unavailable("another process is bringing this grid up to date") from error
        try:
            uri = tracking_uri or default_uri(results)
            self._store = Store(uri, grid, results.folder / "mlartifacts", own=tracking_uri is None)
            self._runs, self._parent = self._known()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Lets another process take over."""
        self._store.close()
        self._lock.release()

    def _known(self) -> tuple[dict[str, Run], Run | None]:
        """The store's runs of this grid by hash, and the parent. A request that was answered too late leaves a second run."""
        known: dict[str | None, Run] = {}
        for run in list(self._store.runs()):  # all pages first: a deletion would shift them
            if run.tags.get("grid") != self.grid:
                continue
            hash = run.tags.get("hash")
            double = known.get(hash)
            if double is None or "status" not in double.tags:
                known[hash] = run
            if double is not None:
                self._store.delete(double if known[hash] is run else run)
        parent = known.pop(None, None)
        return {hash: run for hash, run in known.items() if hash is not None}, parent

    def bring_up_to_date(
        self, go_on: Callable[[], bool] = lambda: True, *, everything: bool = True, driven: bool | None = None
    ) -> Report:
        """One pass over the records.

        Args:
            go_on: asked before each trial; once false, the rest is left for another pass.
            everything: also the trials that were settled in an earlier pass, and the parent run.
            driven: whether a driver is running the grid; found out unless given.

        Raises:
            Unavailable: if the store stops answering.
        """
        report = Report()
        parent = self._parent = self._parent or self._store.create(self._grid_content(driven), None)
        for trial in self._candidates(everything):
            if not go_on():
                report.pending, report.problem = report.pending + 1, report.problem or "no time left"
                continue
            try:
                if (state := snapshot(trial, self.results.trial(trial.hash))) is not None:
                    report.changed += self._project(state, parent)
                    report.running += state.status == RUNNING
                    self._seen[trial.hash] = state.summary
            except (Refused, RecordsError, OSError, ValueError) as error:
                report.pending, report.problem = report.pending + 1, f"trial {trial.hash}: {error}"
                if report.pending >= REFUSALS and not self._seen:
                    raise Unavailable(report.problem) from error
        report.runs = len(self._seen)
        if everything:
            self._project_parent(parent, self._grid_content(driven))
        return report

    @property
    def settled(self) -> set[str]:
        """The trials whose runs are complete, unless another submission runs them again."""
        return {hash for hash, summary in self._seen.items() if summary.settled}

    def _candidates(self, everything: bool) -> list[SubmittedTrial]:
        """The trials that may have something new, found without touching the folder of each."""
        there, settled = _folders(self.results), set() if everything else self.settled
        return [trial for hash, trial in self.trials.items() if hash in there and hash not in settled]

    def _grid_content(self, driven: bool | None) -> Content:
        if driven is None:
            driven = "ended" not in self.submissions[-1].about and held(self.results.grid(self.grid))
        return grid_content(self.grid, self.submissions, self._seen, driven, read_report(self.results, self.grid))

    def _project(self, state: Snapshot, parent: Run) -> bool:
        """Brings a trial's run up to date; whether there was anything to do."""
        hash = state.trial.hash
        content = trial_content(state, self.grid, self.user, hash in self._planned)
        run = self._runs.get(hash)
        if run and self._anew(run, state):
            self._store.delete(self._runs.pop(hash))
            run = None
        if run and run.shows(content):
            return False
        run = run or self._store.create(content, parent)
        self._runs[hash] = run
        new = points(state, run.tags.get("records")) + final_points(state)
        self._runs[hash] = self._store.fill(run, content, new, files(state))
        return True

    def _anew(self, run: Run, state: Snapshot) -> bool:
        """Whether the run shows a trial that was started anew since."""
        records = run.tags.get("records")
        return run.start != state.start or (records is not None and records not in state.chunks)

    def _project_parent(self, parent: Run, content: Content) -> None:
        if parent.shows(content):
            return
        newest = self.submissions[-1]
        texts = {}
        if parent.tags.get("submissions") != content.tags["submissions"]:
            names = ("grid.yaml", "plan.json", "environment.json")
            texts = {name: (newest.folder / name).read_text(encoding="utf-8") for name in names}
        report = read_report(self.results, self.grid)
        if report and parent.tags.get("report") != content.tags.get("report"):
            texts["report.html"] = report.page
        self._parent = self._store.fill(parent, content, [], texts)


def submitted(all_submissions: Iterable[Submission]) -> dict[str, SubmittedTrial]:
    """The trials that any submission of a grid named, by hash, as the newest of those calls them."""
    return {trial.hash: trial for submission in all_submissions for trial in submission.trials()}


def recorded(results: Results, grid: str) -> set[str]:
    """The trials of a grid that have left something in the results folder."""
    return _folders(results) & submitted(submissions(results, grid)).keys()


def _folders(results: Results) -> set[str]:
    folder = results.folder / "trials"
    return {child.name for child in folder.iterdir()} if folder.is_dir() else set()


def default_uri(results: Results) -> str:
    """The SQLite database in the results folder."""
    return f"sqlite:///{results.folder / 'mlflow.db'}"


def ui_command(results: Results, tracking: str | None = None, port: int = 5000) -> list[str]:
    """The command that shows MLflow's pages on this machine: one worker, no jobs, nothing sent home.

    Raises:
        TrackingError: if `tracking` is a server, which has pages of its own.
    """
    if tracking and tracking.startswith("http"):
        raise TrackingError(f"--tracking: {without_password(tracking)} is a server; open that address in a browser")
    uri = tracking or default_uri(results)
    artifacts = results.folder / "mlartifacts"
    settings = NO_TELEMETRY | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [
        "env",
        *(f"{name}={value}" for name, value in settings.items()),
        sys.executable,
        "-m",
        "mlflow",
        "server",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [*command, "--backend-store-uri", uri, "--artifacts-destination", artifacts.as_uri()]
