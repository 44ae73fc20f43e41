"""`harness submit` and `harness stop`: what is sent, what is refused, and a real job on a cluster of three nodes."""

import asyncio
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from machines import PATIENCE, Machines, machines, processes, until
from running.test_faults import Place, first_pass, runs, undisturbed  # noqa: F401  # a fixture
from support import command, harness, plugin, write_grid

from harness import sources
from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import Plan, build_plan
from harness.recording.grids import submissions
from harness.recording.results import Results
from harness.registry import Registry, RegistryError
from harness.running import arrival, nodes, staging, submission
from harness.running.arrival import Refused, check_nodes
from harness.running.scheduling import Infrastructure
from harness.running.staging import NotStaged, Order
from harness.running.stopping import stop_submitted

GRID = """
name: sent
tasks: [digits/mlp]
methods: [slow + adamw, slow + sgd]
seeds: 2
recipes: [{set: {steps: 60, record_every: 10}}]
probes: [oui]
"""

SLOW = """
import os, time
from neighbour import seconds

@register_method("slow")
class Slow(Method):
    def after_step(self, state):
        time.sleep(seconds())
"""

NEIGHBOUR = """
from pathlib import Path

def seconds():
    file = Path({file!r})
    return float(file.read_text()) if file.exists() else 0.0
"""


def planned(grid: Path, *plugins: Path) -> Plan:
    registry = Registry(plugins)
    return build_plan(load_grid(grid, [], registry), registry)


def order(**fields: Any) -> Order:
    content: dict[str, Any] = {
        "grid": "sent",
        "results": "/results",
        "tracking": "http://mlflow:5000",
        "plugins": [],
        "options": [],
        "plan": "plan",
        "versions": nodes.versions(),
    }
    return Order(**content | fields)


# What is sent.


def test_a_package_holds_what_runs_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    code = plugin(tmp_path / "here", "from neighbour import seconds\n")
    (tmp_path / "here" / "neighbour.py").write_text("def seconds(): return 0\n")
    (tmp_path / "here" / "secret.txt").write_text("hidden")
    folder = tmp_path / "package"
    folder.mkdir()
    staged = staging.stage(folder, "name: sent\n", [code])
    assert staged == ["plugins/0/plugin.py"]
    names = {path.relative_to(folder).as_posix() for path in staging.files(folder)}
    assert {"grid.yaml", "plugins/0/plugin.py", "plugins/0/neighbour.py", "harness/cli.py"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {
        "harness",
        "tasks",
        "methods",
        "plugins",
        "grid.yaml",
        "training_harness",
    }
    assert not any("secret" in name or "__pycache__" in name or name.startswith("tests") for name in names)
    assert staging.check_size(folder) < 10 << 20
    with pytest.raises(NotStaged, match=r"allowed: 0; the largest: "):
        staging.check_size(folder, limit=1)


def test_a_package_runs_without_the_checkout(tmp_path: Path) -> None:
    """Entry points are known there, from the dist-info that travels along."""
    folder = tmp_path / "package"
    folder.mkdir()
    staging.stage(folder, "name: sent\n", [])
    code = (
        "import sys; sys.path = [p for p in sys.path if 'site-packages' in p or 'lib/python' in p]\n"
        f"sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; sys.path.insert(0, {str(folder)!r})\n"
        "from importlib import metadata\n"
        "import harness, harness.registry as r\n"
        "print(harness.__file__, metadata.distribution('training-harness').locate_file(''), len(r.Registry().items('method')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    file, place, count = done.stdout.split()
    assert Path(file).is_relative_to(folder)
    assert Path(place).resolve() == folder
    assert int(count) == len(Registry().items("method"))


def test_a_plan_is_the_same_wherever_its_files_lie(tmp_path: Path) -> None:
    """The code digest of a plugin does not depend on the folder that it was unpacked into."""
    digests = set()
    for place in (tmp_path / "a", tmp_path / "z" / "deep"):
        place.mkdir(parents=True)
        code = plugin(place, SLOW)
        (place / "neighbour.py").write_text("def seconds(): return 0\n")
        digests.add(sources.digest([code, place / "neighbour.py", sources.PROJECT / "harness" / "streams.py"]))
    here = sources.PROJECT / "harness" / "streams.py"
    copies = [tmp_path / name / "streams.py" for name in ("0", "~")]
    for copy in copies:
        copy.parent.mkdir()
        copy.write_text(here.read_text())
    other = tmp_path / "5.py"
    other.write_text("x = 1\n")
    assert len(digests) == 1
    assert sources.digest([copies[0], other]) == sources.digest([copies[1], other])


def test_the_digest_sees_every_byte(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    before = staging.digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    (tmp_path / "order.json").write_text("{}")
    assert staging.digest(tmp_path) == before, "neither byte-code nor the order count"
    (tmp_path / "b.py").write_text("x = 2\n")
    assert staging.digest(tmp_path) != before


def test_a_plugin_that_imports_from_outside_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "above" / "inner"
    package.mkdir(parents=True)
    for place in (package, package.parent):
        (place / "__init__.py").write_text("")
    (package.parent / "other.py").write_text("x = 1\n")
    (package / "plugin.py").write_text("from above.other import x\n")
    folder = tmp_path / "package"
    folder.mkdir()
    with pytest.raises(NotStaged, match=r"imports .*other\.py, allowed: files in its own folder"):
        staging.stage(folder, "name: sent\n", [package / "plugin.py"])


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../plugin.py", "plugins/../../plugin.py", "harness/cli.py", "plugins"]
)
def test_an_order_whose_plugin_leads_out_of_the_package_is_refused(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "package"
    (folder / "plugins").mkdir(parents=True)
    (tmp_path / "plugin.py").write_text("")
    (folder / "order.json").write_text(order(plugins=[path]).to_json())
    with pytest.raises(NotStaged, match=r"allowed: a file in the package's folder plugins"):
        Order.read(folder)


def test_an_order_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "plugins" / "0").mkdir(parents=True)
    (tmp_path / "plugins" / "0" / "p.py").write_text("")
    given = order(plugins=["plugins/0/p.py"], code="abc")
    (tmp_path / "order.json").write_text(given.to_json())
    assert Order.read(tmp_path) == given
    assert given.digest != dataclasses.replace(given, code="abd").digest


# What is refused before anything is sent.


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://8.8.8.8:8265", "is the public address 8.8.8.8, and plain http would show the token"),
        ("http://[2001:4860:4860::8888]:8265", "is the public address 2001:4860:4860::8888"),
        ("head:8265", "allowed: http://HEAD:8265"),
        ("ray://head:10001", "allowed: http://HEAD:8265"),
        ("http://no-such-host.invalid:8265", "is unknown"),
    ],
)
def test_addresses_that_are_refused(address: str, says: str) -> None:
    with pytest.raises(submission.BadSubmission, match="--address: ") as raised:
        submission.check_address(address)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "http://10.1.2.3:8265", "http://192.168.0.9:8265", "https://8.8.8.8"]
)
def test_addresses_that_are_taken(address: str) -> None:
    submission.check_address(address)


def target(**fields: Any) -> submission.Target:
    content: dict[str, Any] = {"address": "http://127.0.0.1:8265", "results": "/results", "tracking": "http://m:5000"}
    return submission.Target(**content | fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"results": "results"}, "--results: found results, allowed: an absolute path"),
        ({"tracking": "postgresql://me:hidden@host/runs"}, "--tracking: found an address with a user or password"),
        ({"tracking": ""}, "--tracking: found '', allowed: http://…"),
        ({"tracking": "mlruns"}, "--tracking: found 'mlruns', allowed: http://…"),
        ({"tracking": "mongo://me:hidden@host/runs"}, "--tracking: found an address with a user or password"),
        ({"address": "http://me:hidden@127.0.0.1:8265"}, "--address: found an address with a user or password"),
        ({"driver_label": "on-demand"}, "--driver-label: found 'on-demand', allowed: NAME=VALUE"),
    ],
)
def test_what_must_not_be_sent(fields: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "token")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    target().check()
    with pytest.raises(submission.BadSubmission) as raised:
        target(**fields).check()
    assert says in str(raised.value)
    assert "hidden" not in str(raised.value)


def test_without_a_token_nothing_is_sent(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, GRID)
    environment = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""}
    arguments = ["--address", "http://127.0.0.1:9", "--results", "/results", "--tracking", "http://mlflow:5000"]
    assert "no token: set RAY_AUTH_TOKEN" in harness("submit", grid, *arguments, status=2, **environment)


def test_a_cluster_that_is_not_there_is_infrastructure(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, GRID.replace("slow + ", ""))
    arguments = ["--address", "http://127.0.0.1:9", "--results", "/results", "--tracking", "http://mlflow:5000"]
    shown = harness("submit", grid, *arguments, status=3, RAY_AUTH_TOKEN="x")
    assert "the cluster at http://127.0.0.1:9 does not answer" in shown


# Which attempt.


def job(status: str, attempt: int, order: Order, results: str | None = None, code: int | None = None) -> Any:
    metadata = {"grid": order.grid, "order": order.digest, "results": results or order.results}
    id = f"{order.grid}-{order.digest}-{attempt}"
    state = SimpleNamespace(value=status)
    return SimpleNamespace(submission_id=id, metadata=metadata, status=state, start_time=attempt, driver_exit_code=code)


class Jobs:
    """The jobs that a cluster remembers."""

    def __init__(self, *listed: Any) -> None:
        self.listed = list(listed)

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(metadata=None, submission_id=None), *self.listed]


def test_a_live_job_is_followed_and_an_ended_one_gets_its_next_attempt() -> None:
    given, other = order(), order(code="other")
    assert submission._known(Jobs(), given) == (None, 1)
    ended = [job("FAILED", 1, given), job("STOPPED", 2, given)]
    assert submission._known(Jobs(*ended), given) == (None, 3)
    assert submission._known(Jobs(*ended, job("RUNNING", 3, given)), given) == (f"sent-{given.digest}-3", 0)
    assert submission._known(Jobs(job("SUCCEEDED", 7, other)), given) == (None, 1), "other code counts for itself"
    assert submission._known(Jobs(job("PENDING", 1, other, "/elsewhere")), given) == (None, 1)
    with pytest.raises(submission.BadSubmission, match="is running there with other content or code"):
        submission._known(Jobs(job("PENDING", 1, other)), given)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("SUCCEEDED", None, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", None, 3),
        ("FAILED", -9, 3),
        ("STOPPED", None, 130),
    ],
)
def test_the_exit_status_is_that_of_the_grid(status: str, code: int | None, expected: int) -> None:
    assert submission.exit_status(job(status, 1, order(), code=code)) == expected


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of a head that gives every connection the same answer and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):  # the socket is shut down at the end
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)


class Head:
    """A client of a head that restarts while it is asked for a log so often, and then knows the job as ended."""

    def __init__(self, address: str, restarts: int) -> None:
        self.address, self.restarts = address, restarts

    async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
        import aiohttp

        if self.restarts:
            self.restarts -= 1
            async with aiohttp.ClientSession() as session:
                await session.ws_connect(f"{self.address}/api/jobs/{id}/logs/tail")
        yield "ended\n"

    def get_job_info(self, id: str) -> Any:
        return job("SUCCEEDED", 1, order(), code=0)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"])
def test_a_head_that_restarts_is_asked_again_and_not_for_ever(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes the connection, or answers that it does not serve yet."""
    monkeypatch.setattr(submission, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))
    written: list[str] = []
    with answering(answer) as address:
        assert submission.follow(Head(address, 2), "sent-1", written.append) == 0
        assert written == ["ended\n"]
        monkeypatch.setattr(submission, "PATIENCE", -1.0)
        with pytest.raises(Infrastructure, match="the head no longer answers"):
            submission.follow(Head(address, 2), "sent-1", written.append)


class Dead:
    """A client of a head whose connection dies without a word after the first line, and is well the next time."""

    def __init__(self) -> None:
        self.tails = 0

    async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
        self.tails += 1
        yield "first\n"
        if self.tails == 1:
            await asyncio.sleep(3600)
        yield "last\n"

    def get_job_info(self, id: str) -> Any:
        return job("SUCCEEDED", 1, order(), code=0)


def test_a_connection_that_dies_without_a_word_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no line is shown twice."""
    monkeypatch.setattr(submission, "QUIET", 0.2)
    head, written = Dead(), list[str]()
    assert submission.follow(head, "sent-1", written.append) == 0
    assert written == ["first\n", "last\n"]
    assert head.tails == 2


@contextmanager
def hanging(answer: bytes | None, ray: str = nodes.versions()["ray"]) -> Iterator[tuple[str, threading.Event]]:
    """The address of a head without jobs, and what makes it answer so, or not at all."""
    told = {"/api/version": json.dumps({"ray_version": ray}), "/api/jobs/": "[]"}
    hangs, over = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if hangs.is_set():
                if answer is None:
                    over.wait()
                else:
                    self.wfile.write(answer)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(told[self.path].encode())

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", hangs
        finally:
            over.set()
            server.shutdown()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, r"the head no longer answers \(.*timed out"),
        (b"", r"the head no longer answers \(.*Connection aborted"),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nlater", "the head answers 503: later"),
    ],
)
def test_a_head_that_hangs_is_not_waited_for_for_ever(
    answer: bytes | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    with hanging(answer) as (address, hangs):
        client = submission.connect(address)
        assert stop_submitted(client, "sent") == []
        monkeypatch.setattr(submission, "PATIENCE", 1.0)
        hangs.set()
        with pytest.raises(Infrastructure, match=says):
            stop_submitted(client, "sent")


def test_a_head_with_another_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    with (
        hanging(None, ray="2.1.0") as (address, _),
        pytest.raises(submission.BadSubmission, match=r"ray 2\.1\.0 there"),
    ):
        submission.connect(address)


# What the head checks, with a cluster that answers as it is told to.


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"code": "other"}, "what the head has unpacked is not what was sent"),
        ({"versions": nodes.versions() | {"torch": "1.0"}}, "the head has other versions than the client: torch"),
        ({"plan": "other"}, "the head plans other trials than the client"),
    ],
)
def test_a_head_that_is_not_as_it_must_be_is_refused(
    fields: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid(tmp_path, GRID.replace("slow + ", ""))
    right = order(code=staging.digest(tmp_path), plan=staging.plan_digest(planned(grid)))
    with pytest.raises(Refused, match=r"the head runs harness from .*, not what was sent"):
        arrival.check(right, tmp_path)
    monkeypatch.setattr(arrival, "sources", SimpleNamespace(PROJECT=tmp_path))
    with pytest.raises(Refused, match=says):
        arrival.check(dataclasses.replace(right, **fields), tmp_path)
    with pytest.raises(Infrastructure, match="the head does not reach http://mlflow:5000"):
        arrival.check(right, tmp_path)


def arrived(folder: Path, **fields: Any) -> None:
    """An order as the head finds it unpacked in a folder."""
    (folder / "order.json").write_text(order(**fields).to_json())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (GridError("grid.yaml", "tasks", "found 'nowhere'"), "grid.yaml: tasks: found 'nowhere'"),
        (RegistryError("method 'adamw' is registered twice"), "method 'adamw' is registered twice"),
    ],
)
def test_a_grid_that_the_head_cannot_plan_is_refused(
    error: ValueError, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A task that the head does not have, or a name that it has twice: no traceback, exit status 2."""

    def plan(given: Order, folder: Path) -> None:
        raise error

    arrived(tmp_path, results=str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(arrival, "check", plan)
    assert arrival.main() == 2
    assert capfd.readouterr().err == f"refused: {says}\n"


def test_a_results_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As one that is there and cannot be written."""
    (tmp_path / "file").write_text("")
    arrived(tmp_path, results=str(tmp_path / "file" / "below"))
    monkeypatch.chdir(tmp_path)
    assert arrival.main() == 2
    assert capfd.readouterr().err.startswith("refused: --results: the head cannot write there")


class Told:
    """A stand-in for `ray` with one node."""

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeManagerHostname": "w1", "NodeManagerAddress": "10.0.0.2", "NodeID": "1"}]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"versions": nodes.versions() | {"torch": "1.0"}}, "torch 1.0 there, "),
        ({"versions": nodes.versions() | {"python": "3.8"}}, "python 3.8 there, "),
        ({"code": "stale"}, "runs other code than what was sent"),
        ({"sees": False}, "give --results a folder that all nodes share"),
        ({"unwritable": "Read-only file system"}, "Read-only file system"),
        ({"left": ".nothing"}, "nothing arrives"),
    ],
)
def test_a_worker_that_is_not_as_it_must_be_is_named(
    fields: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = order(results=str(tmp_path), code="sent")

    def ask(ray: Any, node: dict[str, Any], marked: Path, with_code: bool) -> nodes.Answer:
        own = nodes.answer(str(marked), False)
        return dataclasses.replace(own, **{"code": "sent"} | told)

    monkeypatch.setattr("harness.running.arrival.ask", ask)
    told: dict[str, Any] = {}
    check_nodes(Told(), given)
    told = fields
    with pytest.raises(Refused, match=r"node w1 \(10\.0\.0\.2\): ") as raised:
        check_nodes(Told(), given)
    assert says in str(raised.value)
    assert not list(tmp_path.iterdir()), "no marker stays"


# A real cluster.

SECRET = "sekrit-92f1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines(2, {"AWS_SECRET_ACCESS_KEY": SECRET}, dashboard=True) as started:
        yield started


@pytest.mark.slow
def test_a_grid_goes_to_a_cluster_and_back(
    cluster: Machines,
    tmp_path: Path,
    undisturbed: Place,  # noqa: F811
) -> None:
    """Sent, left alone by Ctrl-C, followed, stopped, sent again: and the numbers are those of a laptop."""
    from ray.job_submission import JobSubmissionClient

    pace, results = tmp_path / "pace", tmp_path / "results"
    code = plugin(tmp_path, SLOW)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR.format(file=str(pace)))
    grid = write_grid(tmp_path, GRID)
    tracking = f"sqlite:///{tmp_path / 'runs.db'}"
    place = ["--address", cluster.dashboard]
    send = command("submit", grid, *place, "--results", results, "--tracking", tracking, "--plugin", code)
    send += ["--commit-every", "0.5"]
    pace.write_text("2")
    environment = os.environ | {"MY_API_KEY": SECRET}
    client = JobSubmissionClient(cluster.dashboard)

    first = subprocess.Popen(send, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    hashes = [trial.hash for trial in planned(grid, code).trials]

    def committed() -> bool:
        assert first.poll() is None, first.communicate()[0]
        return any(Results(results).trial(hash).commit() for hash in hashes)

    until(committed, PATIENCE, "a commit")
    first.send_signal(signal.SIGINT)
    shown = first.communicate(timeout=PATIENCE)[0]
    assert first.returncode == 130, shown
    assert "It goes on without this terminal" in shown
    (running,) = submission.jobs(client, "sent")
    assert running.status.value == "RUNNING"
    assert running.submission_id.endswith("-1")

    second = subprocess.Popen(send, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert second.stdout
    assert any("is running already" in line for line in second.stdout), "it follows what runs"
    stopped = harness("stop", grid, *place)
    assert f"Stopped: {running.submission_id}" in stopped
    shown = second.communicate(timeout=PATIENCE)[0]
    assert second.returncode == 130, shown
    commits = [Results(results).trial(hash).commit() for hash in hashes]
    assert any(commit and commit.checkpoint for commit in commits), "what ran has committed"
    assert submissions(Results(results), "sent")[-1].about["status"] == "interrupted"
    assert statuses(tracking) <= {"KILLED", "FINISHED"}, "no run is left open"
    until(lambda: not processes(str(results)), 120, "the end of every process of the grid on a cluster that lives on")

    pace.write_text("0")
    done = subprocess.run(send, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{running.submission_id.removesuffix('-1')}-2" in done.stdout
    assert "digits/mlp: test/accuracy" in done.stdout
    look = [line.partition(":")[2].strip() for line in done.stdout.splitlines()[-3:]]
    line = f"{grid} --plugin {code} --results {results}"
    assert look == [f"harness report {line}", f"harness ui --tracking {tracking}", f"harness plan {line}"]
    assert done.stdout.count("harness report") == 1, "nothing of the head's own folder"

    for hash in hashes:
        mine, theirs = (Results(place).trial(hash).result() for place in (results, undisturbed.results))
        assert mine is not None
        assert theirs is not None
        assert mine.weights == theirs.weights
    assert statuses(tracking) == {"FINISHED"}
    laptop = {run["hash"]: run["points"] for run in runs(undisturbed.results / "mlflow.db")}
    shown = sorted((run["hash"], run["points"]) for run in runs(Path(tracking.removeprefix("sqlite:///"))))
    assert shown == sorted((hash, laptop[hash]) for hash in hashes), "each trial once in MLflow, with each point once"
    sent = json.dumps([job.model_dump(mode="json") for job in client.list_jobs()])
    assert SECRET not in sent
    for file in [
        *results.rglob("*"),
        tmp_path / "runs.db",
        *(cluster.folder / "session_latest" / "logs").glob("job-*"),
    ]:
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file
            assert cluster.environment["RAY_AUTH_TOKEN"].encode() not in file.read_bytes(), file


def statuses(tracking: str) -> set[str]:
    import sqlite3

    with sqlite3.connect(tracking.removeprefix("sqlite:///")) as store:
        return {status for (status,) in store.execute("select status from runs where lifecycle_stage = 'active'")}


@pytest.mark.slow
def test_a_wrong_token_and_what_the_head_refuses(cluster: Machines, tmp_path: Path) -> None:
    grid = write_grid(tmp_path, GRID.replace("slow + ", ""))
    place = ["--address", cluster.dashboard, "--tracking", f"sqlite:///{tmp_path / 'runs.db'}"]
    shown = harness("submit", grid, *place, "--results", tmp_path, status=3, RAY_AUTH_TOKEN="0" * 64)
    assert "does not answer as it should" in shown
    file = tmp_path / "file"
    file.write_text("")
    shown = harness("submit", grid, *place, "--results", file / "below", status=2)
    assert "refused: --results: the head cannot write there" in shown
    shown = harness(
        "submit",
        grid,
        "--address",
        cluster.dashboard,
        "--results",
        tmp_path,
        "--tracking",
        "http://127.0.0.1:9",
        status=3,
    )
    assert "--tracking: the head does not reach http://127.0.0.1:9" in shown


# Without a cluster.


@pytest.mark.slow
def test_a_local_grid_is_stopped_from_another_terminal(tmp_path: Path) -> None:
    pace, results = tmp_path / "pace", tmp_path / "results"
    code = plugin(tmp_path, SLOW)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR.format(file=str(pace)))
    grid = write_grid(tmp_path, GRID)
    pace.write_text("2")
    assert "Grid sent is not running there." in harness("stop", grid, "--results", results)
    run = command("run", grid, "--results", results, "--plugin", code, "--commit-every", 1)
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    hashes = [trial.hash for trial in planned(grid, code).trials]
    until(lambda: any(Results(results).trial(hash).commit() for hash in hashes), PATIENCE, "a commit")
    first_pass(results, "sent")
    began = time.monotonic()
    assert "Stopped: sent" in harness("stop", "sent", "--results", results)
    assert time.monotonic() - began < 60
    shown = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 130, shown
    assert "nothing is lost" in shown
    assert statuses(f"sqlite:///{results / 'mlflow.db'}") <= {"KILLED", "FINISHED"}
    until(lambda: not processes(str(results)), 60, "the end of every process")
    assert "Grid sent is not running there." in harness("stop", grid, "--results", results)


def test_a_driver_elsewhere_is_named(tmp_path: Path) -> None:
    from filelock import FileLock

    from harness.recording.grids import open_submission

    results = Results(tmp_path)
    open_submission(results, "sent", grid_text="", trials=[], left_out=[], environment={})
    about = tmp_path / "grids" / "sent" / "submissions" / "0001" / "submission.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"host": "elsewhere"}))
    with FileLock(tmp_path / "grids" / "sent" / "lock"):
        assert "its driver runs on elsewhere" in harness("stop", "sent", "--results", tmp_path, status=3)
    assert harness("stop", "../../sent", "--results", tmp_path, status=2).startswith("GRID: found ")
    assert socket.gethostname() != "elsewhere"


def test_the_package_is_that_of_this_checkout() -> None:
    assert (sources.PROJECT / "harness" / "running" / "arrival.py").is_file()
