"""An MLflow tracking store, as the projection needs it. The only module that imports MLflow, and only when a store is opened."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.recording.grids import without_password
from harness.recording.projection import Content, Point

BATCH = 1000
"""Metrics, and runs, that MLflow takes or gives in one request."""

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")

NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true"}

ENVIRONMENT = NO_TELEMETRY | {
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong comes back as an error, and is told once
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A request that fails is tried again by the next pass; MLflow's own seven tries would take minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

EXPERIMENT = """The grid `{name}`: one parent run, and under it a run for each trial.

- **Verdicts, what is left out, environment:** the description of the parent run.
- **Report:** `harness report {name}` puts `report.html` among the artifacts of the parent run.
- **Means over seeds:** group the runs by the tag `cell`; or by `task`, `method`, `seed`, `status`.
- **Only what succeeded:** `tags.status = "finished"`. One task: `tags.task = "digits/mlp"`.
- **Metrics:** `test/` once, at the selected checkpoint, and `selected/` validation there; `val/` and `train/` over training;
  `probe/` measures; `time/` and `system/` cost.
- **Artifacts of a trial:** `pictures/`, `actions.jsonl` (what an adaptive method did), `error.txt`, `log.jsonl` (starts,
  warnings, the end) and `output.txt` (what it printed; the last 256 KiB).
"""

OPTIONAL_TAGS = ("records", "stale", "planned", "reason")
"""Tags of a run that go again once they no longer hold."""


VOUCHING = ("status", "records", "submissions", "report")
"""Tags that say that the content of a run is there: written last."""


class TrackingError(RuntimeError):
    """MLflow could not be brought up to date."""


class Unavailable(TrackingError):
    """The store does not answer, or answers with an error that is not about one run."""


class Refused(TrackingError):
    """The store refuses what it was asked for."""


@dataclass(frozen=True)
class Run:
    """A run as the store has it."""

    id: str
    start: int
    end: int | None
    status: str
    tags: Mapping[str, str]

    def shows(self, content: Content) -> bool:
        """Whether it is what it shall be."""
        return (
            (self.start, self.status) == (content.start, content.status)
            and (content.end is None or self.end == content.end)
            and all(self.tags.get(name) == value for name, value in content.tags.items())
            and not self.obsolete(content)
        )

    def obsolete(self, content: Content) -> list[str]:
        """The tags that it has and shall not have."""
        names = [name for name in OPTIONAL_TAGS if name in self.tags and name not in content.tags]
        note = ["mlflow.note.content"] if "reason" in names and "mlflow.note.content" in self.tags else []
        return names + note


def scheme_of(uri: str) -> str:
    """The kind of store that an address names.

    >>> scheme_of("postgresql+psycopg2://db/mlflow")
    'postgresql'

    Raises:
        TrackingError: if MLflow has no such stores.
    """
    scheme = uri.split(":")[0].split("+")[0]
    if "://" not in uri or scheme not in SCHEMES:
        allowed = ", ".join(f"{known}://…" for known in SCHEMES)
        raise TrackingError(
            f"--tracking: found {without_password(uri)!r}, allowed: {allowed}; file stores are not supported by MLflow any more"
        )
    return scheme


def _scheme(uri: str) -> str:
    """The kind of store behind an address; MLflow's settings are in place from here on."""
    scheme = scheme_of(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return scheme


def reachable(uri: str) -> None:
    """Asks a store for its experiments.

    Raises:
        TrackingError: if it does not answer.
    """
    _scheme(uri)
    with _answers():
        from mlflow import MlflowClient

        MlflowClient(uri).search_experiments(max_results=1)


def writable(database: Path) -> None:
    """Opens an SQLite store and takes the lock that a writer needs; one that does not exist is made beside it, for as long.

    Raises:
        TrackingError: if it cannot be opened or written.
        OSError: if its folder cannot be written.
    """
    _check_own(database)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=database.parent, ignore_cleanup_errors=True) as place:
        tried = database if database.exists() else Path(place) / database.name
        reachable(f"sqlite:///{tried}")
        with _answers(), closing(sqlite3.connect(tried, timeout=20)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()


class Store:
    """One experiment in a tracking store.

    Args:
        uri: where the store is.
        experiment: its name; it is created if it does not exist.
        artifacts: where the files of an experiment in a database go; a server decides for itself.
        own: whether the database is the results folder's own, which can be deleted and built anew at any time.

    Raises:
        TrackingError: if the store cannot be opened.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path, own: bool) -> None:
        scheme = _scheme(uri)
        with _answers():
            from mlflow import MlflowClient

            if own:
                _check_own(artifacts.with_name("mlflow.db"))
                _do_not_wait_for_the_disk()
            folder = None if scheme.startswith("http") else artifacts / experiment
            with FileLock(artifacts.with_name("mlflow.lock")):  # MLflow makes its tables without asking who else does
                if scheme == "sqlite":
                    _make(uri)
                self._client = MlflowClient(uri)
                self._experiment = self._open(experiment, folder, own)
        self._bulk = _Bulk(uri, own) if scheme == "sqlite" else None

    def _open(self, name: str, artifacts: Path | None, own: bool) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        if own and artifacts:  # what a deleted database has left behind
            shutil.rmtree(artifacts, ignore_errors=True)
        tags = {
            "mlflow.note.content": EXPERIMENT.format(name=name),
            "mlflow.experimentKind": "custom_model_development",  # what the interface would otherwise ask for
        }
        return str(self._client.create_experiment(name, artifacts.as_uri() if artifacts else None, tags))

    def close(self) -> None:
        """Lets go of the database."""
        if self._bulk:
            self._bulk.close()

    def runs(self) -> Iterator[Run]:
        """All runs of the experiment that are not deleted."""
        token = None
        while True:
            with _answers():
                page = self._client.search_runs([self._experiment], max_results=BATCH, page_token=token)
            for run in page:
                yield Run(run.info.run_id, run.info.start_time, run.info.end_time, run.info.status, dict(run.data.tags))
            token = page.token
            if not token:
                return

    def create(self, content: Content, parent: Run | None) -> Run:
        """A run with its tags, but for those that say that its content is there."""
        tags = {name: value for name, value in content.tags.items() if name not in VOUCHING}
        if parent:
            tags["mlflow.parentRunId"] = parent.id
        with _answers():
            run = self._client.create_run(self._experiment, start_time=content.start, tags=tags, run_name=content.name)
        return Run(run.info.run_id, content.start, None, "RUNNING", tags)

    def delete(self, run: Run) -> None:
        """Deletes a run."""
        with _answers():
            self._client.delete_run(run.id)

    def fill(self, run: Run, content: Content, points: Sequence[Point], files: Mapping[str, str]) -> Run:
        """Brings a run to its content. The tags come after what they vouch for: cut short, it can be done again."""
        from mlflow.entities import Param, RunTag

        with _answers():
            self._write(run, points)
            for name, text in files.items():
                self._client.log_text(run.id, text, name)
            if content.dataset and "status" not in run.tags:
                self._log_dataset(run, *content.dataset)
            for name in run.obsolete(content):
                self._client.delete_tag(run.id, name)
            tags = [RunTag(name, value) for name, value in content.tags.items() if run.tags.get(name) != value]
            params = [Param(name, value[:6000]) for name, value in content.params.items()]
            if tags:
                self._client.log_batch(run.id, params=params, tags=tags)
            if content.end is None and run.status != content.status:
                self._client.update_run(run.id, content.status)
            elif content.end is not None and (run.status, run.end) != (content.status, content.end):
                self._client.set_terminated(run.id, content.status, content.end)
        return replace(run, end=content.end or run.end, status=content.status, tags=dict(content.tags))

    def _write(self, run: Run, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        if self._bulk and self._bulk.fits:
            self._bulk.write(run.id, points)
            return
        for first in range(0, len(points), BATCH):
            metrics = [Metric(key, value, time, step) for key, value, time, step in points[first : first + BATCH]]
            self._client.log_batch(run.id, metrics=metrics)

    def _log_dataset(self, run: Run, name: str, digest: str, source: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest, source_type="harness", source=source)
        self._client.log_inputs(run.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train, val, test")])])


class _Bulk:
    """Points written straight to the tables of an SQLite store.

    `log_batch` takes some 130 µs per point, most of it for an object that it makes of each, and this 17 µs: for a trial of
    0.3 s with 500 points, 65 ms against 8. Where these two tables are not as expected, `fits` is false and `log_batch` is
    used. As there, a point that is there already is left alone.
    """

    COLUMNS = frozenset({"key", "value", "timestamp", "run_uuid", "step", "is_nan"})

    def __init__(self, uri: str, own: bool) -> None:
        from sqlalchemy import make_url

        self._database = sqlite3.connect(make_url(uri).database or "", timeout=20)
        if own:
            self._database.execute("PRAGMA synchronous=OFF")
        self.fits = all(self._columns(table) == self.COLUMNS for table in ("metrics", "latest_metrics"))

    def _columns(self, table: str) -> set[str]:
        return {row[1] for row in self._database.execute(f"PRAGMA table_info({table})")}

    def close(self) -> None:
        self._database.close()

    def write(self, run: str, points: Sequence[Point]) -> None:
        rows = [(key, value, time, step, run) for key, value, time, step in points]
        latest: dict[str, tuple[Any, ...]] = {}
        for row in rows:
            old = latest.get(row[0])
            if old is None or (row[3], row[2], row[1]) > (old[3], old[2], old[1]):
                latest[row[0]] = row
        insert = "INTO {} (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, 0)"
        later = "(excluded.step, excluded.timestamp, excluded.value) > (step, timestamp, value)"
        values = "value = excluded.value, timestamp = excluded.timestamp, step = excluded.step, is_nan = 0"
        with self._database:
            self._database.executemany(f"INSERT OR IGNORE {insert.format('metrics')}", rows)
            self._database.executemany(
                f"INSERT {insert.format('latest_metrics')} "
                f"ON CONFLICT (key, run_uuid) DO UPDATE SET {values} WHERE {later}",
                list(latest.values()),
            )


def _check_own(database: Path) -> None:
    """Looks whether a results folder's own database can be read: MLflow tries a damaged one ten times, for 100 s.

    Raises:
        Unavailable: if it is damaged, with what to do.
    """
    if not database.exists():
        return
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        try:
            connection.execute("PRAGMA schema_version")
        except sqlite3.OperationalError:  # another has locked it
            return
        except sqlite3.DatabaseError as error:
            raise Unavailable(f"{database}: {error}; delete it, and harness sync builds it anew") from error


def _make(uri: str) -> None:
    """Makes an SQLite database with MLflow's tables, whole or not at all.

    MLflow takes some seconds for them, one change after another. Where that was cut short, by a full disk or a SIGKILL, it begins
    again, fails at what is there already, and never opens that database.
    """
    from sqlalchemy import make_url

    database = Path(make_url(uri).database or "")
    if database.exists():
        return
    for left in database.parent.glob(f".{database.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{database.name}-", dir=database.parent, ignore_cleanup_errors=True
    ) as place:
        made = Path(place) / database.name
        reachable(f"sqlite:///{made}")
        made.replace(database)


def _do_not_wait_for_the_disk() -> None:
    """Spares SQLite its waiting for the disk: after a power cut the database is deleted and synced anew."""
    import sqlalchemy

    if not sqlalchemy.event.contains(sqlalchemy.engine.Engine, "connect", _connected):
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", _connected)


def _connected(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@contextmanager
def _answers() -> Iterator[None]:
    """Tells a store that does not answer from one that refuses.

    Raises:
        Refused: for what the store says is wrong with the request.
        Unavailable: for everything else.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # MLflow lets through what goes wrong when it opens a database

    try:
        yield
    except MlflowException as error:
        kind = Refused if error.get_http_status_code() in (400, 404, 409, 413, 422) else Unavailable
        raise kind(_line(error)) from error
    except (requests.RequestException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise Unavailable(_line(error)) from error


def _line(error: BaseException) -> str:
    return without_password(str(error).strip().split("\n")[0])[:500] or type(error).__name__
