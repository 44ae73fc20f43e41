"""MLflow's server on PostgreSQL, as `clusters/` deploys it: the same runs as on SQLite, and a database that goes away."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from machines import PATIENCE, free_port, until
from recording.test_tracking import (  # noqa: F401  # fixtures
    empty_database,
    memory,
    server,
    shown,
    spec,
    submit,
    train,
    without_ids,
)

from harness.recording.results import Results
from harness.recording.store import TrackingError
from harness.recording.tracking import Projection, sync, ui_command

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


class Postgres:
    """A PostgreSQL of its own in a folder, which belongs to whom it may run as: never root."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder, self.port = programs, folder, free_port()
        self.user: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}
        self.uri = f"postgresql+psycopg2://postgres@127.0.0.1:{self.port}/postgres"

    def make(self) -> None:
        command = [self.programs / "initdb", "--auth=trust", "--username=postgres", "-D", self.folder / "data"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self.user)

    @contextmanager
    def running(self) -> Iterator[None]:
        settings = [f"-p{self.port}", "-h127.0.0.1", f"-k{self.folder}", "-cfsync=off"]
        process = subprocess.Popen(
            [self.programs / "postgres", "-D", self.folder / "data", *settings],
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            **self.user,
        )
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        try:
            until(lambda: subprocess.run(ready).returncode == 0, PATIENCE, "PostgreSQL")
            yield
        finally:
            process.send_signal(signal.SIGINT)  # at once: MLflow's server keeps connections
            process.wait(PATIENCE)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg2")
    found = shutil.which("postgres")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not places:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="hpg-"))
    try:
        if os.getuid() == 0:
            try:
                owner = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not start as root, and there is no user postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        made = Postgres(places[-1], folder)
        made.make()
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_database_that_goes_away_is_caught_up_with(
    memory: Results,  # noqa: F811
    postgres: Postgres,
    tmp_path: Path,
) -> None:
    """PostgreSQL ends after two trials; MLflow's server stays and answers with errors. What is missing comes later."""
    trials = [spec(seed) for seed in range(4)]
    submit(memory, trials)
    for trial in trials:
        train(memory, trial)
    elsewhere = Results(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    database = postgres.running()
    database.__enter__()
    with server(ui_command(elsewhere, postgres.uri, port), port):
        projection, asked = Projection(memory, "demo", uri), 0

        def stop_after_two() -> bool:
            nonlocal asked
            asked += 1
            if asked == 3:
                database.__exit__(None, None, None)
            return True

        before = time.monotonic()
        with pytest.raises(TrackingError):
            projection.bring_up_to_date(stop_after_two)
        assert time.monotonic() - before < 120, "nobody waits long for a database"
        projection.close()
        with postgres.running():
            report = sync(memory, "demo", uri)
            assert (report.runs, report.pending) == (4, 0)
            assert 2 <= report.changed <= 3  # the one that was cut short is written again
            assert sync(memory, "demo", uri).changed == 0
            remote = shown(memory, uri=uri)
    sync(memory, "demo")
    assert without_ids(shown(memory)) == without_ids(remote)
