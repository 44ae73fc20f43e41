"""The fault table of `docs/faults.md` on one machine: each fault for real, and what must hold after it."""

import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from machines import PATIENCE, descended, free_port, mounts_alone, processes, until
from recording.test_tracking import server
from support import command, harness, plugin, timeless, write_grid

from harness.planning.grid import load_grid
from harness.planning.plan import Plan, build_plan
from harness.recording.attempts import Attempt
from harness.recording.records import Locked, Result, TrialRecords
from harness.recording.results import Results
from harness.recording.tracking import ui_command
from harness.registry import Registry

pytestmark = pytest.mark.chaos

GRID = """
name: faults
tasks: [digits/mlp]
methods: [slow + adamw, slow + sgd]
seeds: 2
recipes: [{set: {steps: 60, record_every: 10}}]
probes: [oui]
"""

SLOW = """
import os, time
from pathlib import Path

@register_method("slow")
class Slow(Method):
    def after_step(self, state):
        file = Path(__file__).with_name("pace")
        time.sleep(float(file.read_text() or 0) if file.exists() else 0)
"""
"""Trials whose pace a test sets from outside, so that a fault meets them in the middle and the end comes soon."""


def planned(grid: Path, *plugins: Path) -> Plan:
    registry = Registry(plugins)
    return build_plan(load_grid(grid, [], registry), registry)


def runs(database: Path) -> list[dict[str, Any]]:
    """Every run of a trial in MLflow's tables: run, hash, status, params, tags, points outside time/ and system/."""
    with sqlite3.connect(database) as store:
        listed = store.execute(
            "select r.run_uuid, t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid"
            " where t.key = 'hash' and r.lifecycle_stage = 'active'"
        ).fetchall()
        query = "select key, step, value from metrics where run_uuid = ? and key not like 'time/%' and key not like 'system/%'"
        return [
            {
                "run": run,
                "hash": hash,
                "status": status,
                "params": dict(store.execute("select key, value from params where run_uuid = ?", (run,)).fetchall()),
                "tags": dict(store.execute("select key, value from tags where run_uuid = ?", (run,)).fetchall()),
                "points": sorted(store.execute(query, (run,)).fetchall()),
            }
            for run, hash, status in listed
        ]


class Place:
    """A grid of slow trials with its plugin, and the folders of a test."""

    def __init__(self, folder: Path, text: str = GRID, source: str = SLOW) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.results = folder, folder / "results"
        self.code, self.grid = plugin(folder, source), write_grid(folder, text)
        plan = planned(self.grid, self.code)
        self.name, self.hashes = plan.name, [trial.hash for trial in plan.trials]
        self.mark = {"HARNESS_PLACE": secrets.token_hex(8)}
        """What every process that belongs to this place inherits."""

    def pace(self, seconds: float) -> None:
        """Seconds that a step takes from now on."""
        file = self.folder / "pace"
        file.with_suffix(".new").write_text(str(seconds))
        file.with_suffix(".new").replace(file)

    def arguments(self, *more: object) -> list[object]:
        """One trial at a time on this machine unless said otherwise: each worker more takes ten seconds of CPU to begin."""
        asked = ["run", self.grid, "--results", self.results, "--plugin", self.code, "--commit-every", 0.5, *more]
        return asked if {"--cpus", "--address"} & set(more) else [*asked, "--cpus", 1]

    def start(self, *more: object, **environment: str) -> "subprocess.Popen[str]":
        """A driver beside this process."""
        self.driver = subprocess.Popen(
            command(*self.arguments(*more)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | self.mark | environment,
        )
        return self.driver

    def run(self, *more: object, status: int = 0) -> str:
        """A driver, to its end."""
        return harness(*self.arguments(*more), status=status, timeout=PATIENCE, **self.mark)

    def committed(self, attempt: int = 1) -> list[str]:
        """Trials that have committed, in this attempt or a later one, and not ended, while the driver runs."""
        commits = {hash: Results(self.results).trial(hash).commit() for hash in self.unfinished()}
        return [hash for hash, commit in commits.items() if commit and commit.checkpoint and commit.attempt >= attempt]

    def unfinished(self) -> list[str]:
        """Trials that have not ended, while the driver runs."""
        assert self.driver.poll() is None, self.driver.communicate()[0]
        return [hash for hash in self.hashes if not Results(self.results).trial(hash).result()]

    def as_undisturbed(
        self, undisturbed: "Place", database: Path | None = None, otherwise: dict[str, str] | None = None
    ) -> None:
        """Every trial is in MLflow once for this grid, finished with the numbers of an undisturbed run to the bit.

        Args:
            otherwise: the trials that have another end, with MLflow's status of it.
        """
        ends = dict.fromkeys(self.hashes, "FINISHED") | (otherwise or {})
        shown = {run["hash"]: run for run in runs(undisturbed.results / "mlflow.db")}
        mine = [run for run in runs(database or self.results / "mlflow.db") if run["tags"]["grid"] == self.name]
        assert sorted(run["hash"] for run in mine) == sorted(self.hashes), "each trial is in MLflow exactly once"
        assert {run["hash"]: run["status"] for run in mine} == ends
        finished = [hash for hash in self.hashes if ends[hash] == "FINISHED"]
        for run in mine:
            places = [(key, step) for key, step, _ in run["points"]]
            assert len(places) == len(set(places)), "no point is doubled"
            if run["hash"] in finished:
                assert run["points"] == shown[run["hash"]]["points"], "the numbers of an undisturbed run"
        for hash in finished:
            ended, expected = (Results(p.results).trial(hash).result() for p in (self, undisturbed))
            assert ended is not None
            assert expected is not None
            assert ended.weights == expected.weights
            assert timeless(ended.metrics) == timeless(expected.metrics)

    def nothing_runs(self, seconds: float = 120) -> None:
        """Within two minutes no process is left that was started for this results folder, Ray's own included.

        Those of a cluster that the driver has only joined are the cluster's.
        """
        until(
            lambda: not processes(str(self.results)) and not descended(*self.mark.values()),
            seconds,
            "the end of every process",
        )


def first_pass(results: Path, grid: str) -> None:
    """Waits until MLflow shows a grid: before that its writer is at the tables, which a stop does not hurry."""
    until((results / "grids" / grid / "tracking.mark").exists, PATIENCE, "the writer's first pass")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The grid, with one method more, run once with nothing in its way, by one of pytest's workers for all.

    What a trial is does not depend on where its plugin lies or what else that holds, so other grids' trials are the same.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "undisturbed"
    with FileLock(folder.with_suffix(".lock")):
        place = Place(folder, GRID.replace("slow + sgd", "slow + sgd, sgd"))
        if not (folder / "done").exists():
            place.run()
            (folder / "done").touch()
    return place


def worker_processes(place: Place, kind: str) -> list[psutil.Process]:
    """The trials of a grid that run (`trial`), the warm processes that they come from (`warm`), the fork servers that these come
    from (`server`) or Ray's workers (`worker`).

    None if one of them ended while it was looked at: whoever waits for them looks again.
    """
    if kind == "worker":
        return [p for p in descended(*place.mark.values()) if "ray::Worker" in " ".join(p.cmdline())]
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        found = {p.pid: p for p in processes(str(place.results)) if "harness.running.forkserver" in p.cmdline()}
        leading = [p for p in found.values() if os.getsid(p.pid) == p.pid]  # a warm process is in its server's session
        trials = [p for p in leading if p.ppid() in found]
        if kind == "warm":
            return [found[pid] for pid in dict.fromkeys(p.ppid() for p in trials)]
        return trials if kind == "trial" else [p for p in leading if p.ppid() not in found]
    return []


@pytest.mark.slow
def test_a_worker_process_is_killed(tmp_path: Path, undisturbed: Place) -> None:
    """Each of the processes that a trial needs, one after another: it goes on, in the same run of `harness`.

    The fork server it needs no more once it has begun; the worker that is killed after it finds none and starts one.
    """
    place = Place(tmp_path)
    place.pace(5)
    driver = place.start("--cpus", 2)

    def attempts() -> int:
        assert driver.poll() is None, driver.communicate()[0]
        return sum(len(Results(place.results).trial(hash).attempts()) for hash in place.hashes)

    until(lambda: len(place.committed()) == 2, PATIENCE, "a commit of each trial that runs")  # whichever is met
    for number, kind in enumerate(("trial", "warm", "worker")):
        if kind == "worker":
            until(partial(worker_processes, place, "server"), PATIENCE, "a fork server")[0].kill()
        victim = until(partial(worker_processes, place, kind), PATIENCE, f"a {kind}")[0]
        running = until(partial(worker_processes, place, "trial"), PATIENCE, "a trial")
        victim.kill()
        until(
            lambda running=running: not all(psutil.pid_exists(p.pid) for p in running),
            PATIENCE,
            "the end of a trial: at full pace it could end before it misses its worker",
        )
        until(lambda begun=3 + number: attempts() >= begun, PATIENCE, "a trial in its place")  # not yet the same one
    place.pace(0)
    shown = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, shown
    assert "3 running" not in shown
    place.as_undisturbed(undisturbed)
    tried = [len(Results(place.results).trial(hash).attempts()) for hash in place.hashes]
    assert sum(tried) >= len(tried) + 3, "whatever was killed was taken up again"
    place.nothing_runs()


@pytest.mark.slow
def test_a_stopped_grid_goes_on_and_a_second_driver_is_refused(tmp_path: Path, undisturbed: Place) -> None:
    place = Place(tmp_path)
    place.pace(1)
    driver = place.start()
    until(place.committed, PATIENCE, "a commit")
    first_pass(place.results, place.name)
    assert "Stopped: faults" in harness("stop", place.grid, "--results", place.results)
    driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130
    assert {run["status"] for run in runs(place.results / "mlflow.db")} <= {"FINISHED", "KILLED"}
    place.nothing_runs()

    driver = place.start()
    until(partial(place.committed, 2), PATIENCE, "a commit of the second attempt")
    assert "grid faults is being run by another driver" in place.run(status=3)
    place.pace(0)
    shown = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, shown
    place.as_undisturbed(undisturbed)
    place.nothing_runs()


@contextmanager
def mounted(folder: Path, *what: str) -> Iterator[Path]:
    """What is mounted for as long, where this machine allows it."""
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", *what, str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"disks cannot be mounted here, which needs root ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def small_disk(folder: Path, size: str) -> AbstractContextManager[Path]:
    """A disk of its own."""
    return mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


def fill(file: Path, driver: "subprocess.Popen[str]") -> None:
    """Keeps a disk full while a driver runs: what it deletes makes room, in which a trial could go on committing."""
    deadline = time.monotonic() + PATIENCE
    with file.open("wb", buffering=0) as filler:
        while driver.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                while True:
                    filler.write(bytes(4096))
            time.sleep(0.02)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.slow
def test_a_results_folder_that_is_read_only_at_the_start(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with small_disk(tmp_path / "disk", "50m") as disk:
        place.results = disk / "results"
        remount(disk, "ro")
        shown = place.run(status=2)
        assert "--results" in shown
        assert "Read-only file system" in shown
        assert not any(disk.iterdir())
    place.nothing_runs(10)


def ends_after_one_trial(place: Place, driver: "subprocess.Popen[str]") -> None:
    """A driver whose results can no longer be written starts nothing new, says so and leaves nothing running."""
    shown = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 3, shown
    assert "a rerun goes on once that is mended" in shown
    begun = [hash for hash in place.hashes if Results(place.results).trial(hash).folder.exists()]
    assert len(begun) == 1, "nothing new started"
    place.nothing_runs()


READ_ONLY = {
    "mount": (
        [  # what is open can still be written; made aside: a mount in which a file is being written does not become read-only
            "mount --make-private {folder}",
            "mount --bind {folder} {aside}",
            "mount -o remount,bind,ro {aside}",
            "mount --bind {aside} {folder}",
            "umount {aside}",
        ],
        ["umount {folder}"],
    ),
    "disk": (
        ["mount -o remount,abort {folder}"],  # as after an error: what was not on the disk by then is lost
        ["umount {folder}", "mount -o loop {image} {folder}"],
    ),
}
"""How a mounted results folder becomes read-only, and how that is mended."""


@pytest.mark.slow
def test_a_results_folder_that_can_no_longer_be_written_in_mid_run(tmp_path: Path, undisturbed: Place) -> None:
    """It becomes full, read-only by its mount and read-only as a disk does after an error: nothing new starts, exit status 3.

    Each time a rerun goes on once that is mended, and the last one finishes.
    """
    place, image, aside = Place(tmp_path), tmp_path / "image", tmp_path / "aside"
    make_disk(image)
    aside.mkdir()

    def do(commands: list[str]) -> None:
        for line in commands:
            subprocess.run(line.format(folder=place.results, image=image, aside=aside).split(), check=True)

    def in_mid_run(attempt: int) -> "subprocess.Popen[str]":
        driver = place.start()
        until(partial(place.committed, attempt), PATIENCE, f"a commit of attempt {attempt}")
        return driver

    with mounts_alone(), mounted(place.results, "-o", "loop,errors=remount-ro", str(image)):
        place.pace(1)  # none ends by itself before
        driver, filler = in_mid_run(1), place.results / "filler"
        fill(filler, driver)
        ends_after_one_trial(place, driver)
        filler.unlink()
        for attempt, (breaks, mends) in enumerate(READ_ONLY.values(), 2):
            driver = in_mid_run(attempt)
            do(breaks)
            ends_after_one_trial(place, driver)
            do(mends)
        place.pace(0)
        place.run()
        harness("sync", "--results", place.results)
        place.as_undisturbed(undisturbed)
        place.nothing_runs()


def make_disk(image: Path) -> None:
    """A file that can be mounted as a disk."""
    program = shutil.which("mkfs.ext4")
    if program is None:
        pytest.skip("disks cannot be made here: there is no mkfs.ext4")
    with image.open("wb") as file:
        file.truncate(100 << 20)
    subprocess.run([program, "-q", str(image)], check=True)


@pytest.mark.slow
def test_the_tracking_disk_is_full(tmp_path: Path, undisturbed: Place) -> None:
    """It costs the grid nothing: what is missing is said, and comes with `harness sync`."""
    place = Place(tmp_path)
    with small_disk(tmp_path / "disk", "200k") as disk:
        shown = place.run("--tracking", f"sqlite:///{disk / 'runs.db'}")
        assert "Next: harness sync faults" in shown
        for hash in place.hashes:
            mine, theirs = (Results(p.results).trial(hash).result() for p in (place, undisturbed))
            assert mine is not None
            assert theirs is not None
            assert mine.weights == theirs.weights
        (disk / "runs.db").unlink(missing_ok=True)
        remount(disk, "size=50m")
        harness("sync", "--results", place.results, "--tracking", f"sqlite:///{disk / 'runs.db'}")
        place.as_undisturbed(undisturbed, disk / "runs.db")
    place.nothing_runs()


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and what it has started at once: MLflow's server answers from a child."""
    top = psutil.Process(process.pid)
    for one in [top, *top.children(recursive=True)]:
        one.kill()
    process.wait()


def points(database: Path) -> int:
    try:
        return sum(len(run["points"]) for run in runs(database))
    except sqlite3.Error:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("back", ["in mid-grid", "after the grid"])
def test_the_tracking_server_is_killed_and_started_again(back: str, tmp_path: Path, undisturbed: Place) -> None:
    """The grid does not wait for it. What it lacks comes by itself, or with `harness sync` where the grid ended first."""
    place, store, port = Place(tmp_path / "place"), Results(tmp_path / "server"), free_port()
    store.folder.mkdir()
    database, uri, command = store.folder / "mlflow.db", f"http://127.0.0.1:{port}", ui_command(store, None, port)
    place.pace(1)
    with server(command, port) as process:
        driver = place.start("--tracking", uri)
        until(lambda: place.committed() and points(database), PATIENCE, "a commit that MLflow shows")
        kill_all(process)
    assert place.unfinished(), "in mid-grid"
    if back == "after the grid":
        place.pace(0)
        shown = driver.communicate(timeout=PATIENCE)[0]
        assert "Next: harness sync faults" in shown
        place.nothing_runs()
    with server(command, port):
        if back == "after the grid":
            harness("sync", "--results", place.results, "--tracking", uri)
        else:
            assert place.unfinished(), "still in mid-grid"
            place.pace(0)
            shown = driver.communicate(timeout=PATIENCE)[0]
            assert "harness sync" not in shown
    assert driver.returncode == 0, shown
    place.as_undisturbed(undisturbed, database)
    assert not (place.results / "mlflow.db").exists()
    place.nothing_runs()


HOG = """
import time
import numpy as np

@register_method("hogs")
class Hogs(Method):
    def after_step(self, state):
        self.held = []
        while True:
            self.held.append(np.ones(1 << 25))  # a quarter of a GiB, until somebody puts an end to it
            time.sleep(0.02)
"""


@pytest.mark.slow
def test_a_trial_that_ray_kills_for_memory(tmp_path: Path, undisturbed: Place) -> None:
    """Ray's monitor kills the worker, which ends a stock sweep: here the others finish, and the culprit is named."""
    place = Place(
        tmp_path, GRID.replace("methods: [", "methods: [hogs + adamw, ").replace("seeds: 2", "seeds: 1"), SLOW + HOG
    )
    place.grid.write_text(place.grid.read_text() + 'resources: [{method: "hogs*", memory: 10GiB}]\n')
    used = psutil.virtual_memory()
    if used.available < 13 << 30:
        pytest.skip("13 GiB of free memory are needed")
    threshold = (used.total - used.available + (9 << 29)) / used.total  # 4.5 GiB: what runs beside it comes and goes
    environment = {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    driver = place.start(**environment)
    shown = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 1, shown
    (hog,) = (t.hash for t in planned(place.grid, place.code).trials if t.method_label == "hogs + adamw")
    ended = Results(place.results).trial(hog).result()
    assert ended is not None
    told = {"out-of-memory": "FAILED", "lost": "KILLED"}  # lost: Ray has said that the actor died, and not of what
    assert ended.status in told, shown
    assert "its memory limit" not in ended.reason, "Ray's monitor came first"
    place.as_undisturbed(undisturbed, otherwise={hog: told[ended.status]})
    place.nothing_runs()


BROKEN = (
    """
import os, sys
if "harness.running.forkserver" in " ".join(open("/proc/self/cmdline").read().split("\\0")):
    import no_such_module
"""
    + SLOW
)


@pytest.mark.slow
def test_a_plugin_that_breaks_on_workers_only(tmp_path: Path, undisturbed: Place) -> None:
    """The driver can import it, no worker can: its trials fail with the reason, the others finish."""
    place = Place(tmp_path, GRID.replace("slow + sgd", "sgd").replace("seeds: 2", "seeds: 1"), BROKEN)
    shown = place.run(status=1)
    assert "no_such_module" in shown
    ended = {
        trial.method_label: Results(place.results).trial(trial.hash).result()
        for trial in planned(place.grid, place.code).trials
    }
    broken, whole = ended["slow + adamw"], ended["sgd"]
    assert broken is not None
    assert whole is not None
    assert (broken.status, whole.status) == ("failed", "finished")
    place.as_undisturbed(undisturbed, otherwise={broken.hash: "FAILED"})
    place.nothing_runs()


def test_a_zombie_attempt_that_wakes_up(tmp_path: Path) -> None:
    """An attempt that lost its lock, as on a file system that forgot it, writes where nobody reads."""
    results = tmp_path / "results"
    with Attempt(results, "abc", "{}", "code") as zombie:
        zombie.record({"step": 1, "metrics": {"train/loss": 1.0}})
        zombie.commit(1, b"first")
        zombie.record({"step": 2, "metrics": {"train/loss": 666.0}})
        (results / "trials" / "abc" / "lock").unlink()
        with Attempt(results, "abc", "{}", "code") as later:
            later.record({"step": 2, "metrics": {"train/loss": 2.0}})
            later.commit(2, b"second")
            with pytest.raises(Locked, match="a later attempt has taken over"):
                zombie.commit(2, b"zombie")
            with pytest.raises(Locked):
                zombie.finish(Result("abc", "finished", "code", metrics={"test/accuracy": 0.0}))  # type: ignore[arg-type]
            later.finish(Result("abc", "finished", "code", metrics={"test/accuracy": 1.0}))  # type: ignore[arg-type]
    trial = TrialRecords(results, "abc")
    assert [(record["step"], record["metrics"]["train/loss"]) for record in trial.records()] == [(1, 1.0), (2, 2.0)]
    ended = trial.result()
    assert ended is not None
    assert ended.metrics == {"test/accuracy": 1.0}


def test_a_checkpoint_that_is_not_plain_tensors(tmp_path: Path) -> None:
    """What would run code when it is unpickled is refused, and the trial says so."""
    import io
    import pickle

    import torch
    from support import run

    from harness.conformance import short_spec
    from harness.identity import Part

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    registry = Registry()
    spec = short_spec(registry, "digits/mlp", [Part("adamw")])
    stream = io.BytesIO()
    torch.save({"model": Evil()}, stream, pickle_module=pickle)
    for number, content in enumerate((stream.getvalue(), pickle.dumps(Evil()), b"no checkpoint at all")):
        results = tmp_path / str(number)
        with Attempt(results, spec.hash, spec.to_json(), "test") as attempt:
            attempt.record({"step": 1, "metrics": {}})
            attempt.commit(1, content)
        ended = run(registry, spec, results)
        assert ended.status == "failed"
        assert "checkpoint" in ended.reason
        assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "name", ["../out", "a/b", "/tmp/no/such/grid", "..", ".hidden", "a\\b", "A", "", "x" * 101, "a\nb", "a\0b"]
)
def test_a_grid_whose_name_leads_out_of_the_results_folder(name: str, tmp_path: Path) -> None:
    from harness.planning.errors import GridError

    place = write_grid(tmp_path, GRID.replace("slow + ", "").replace("name: faults", f"name: {json.dumps(name)}"))
    with pytest.raises(GridError, match="name: "):
        load_grid(place, [], Registry())
    shown = harness("stop", name.replace("\0", "") or "..", "--results", tmp_path / "results", status=2)
    assert shown.startswith("GRID: found ")
    assert not (tmp_path / "results").exists()
