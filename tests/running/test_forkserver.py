"""The fork server: one for alike workers of a node, there when it is needed, gone when it is not."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from machines import PATIENCE, until
from support import plugin, run, timeless

from harness.conformance import short_spec
from harness.identity import Part, code_digest
from harness.recording.records import TrialRecords
from harness.registry import Registry
from harness.resources import Resources
from harness.running import forkserver
from harness.running.children import WarmHandle
from harness.running.forkserver import ForkServer, warm_process
from harness.running.units import UnitTrial

PRINTS = """
import os
os.write(2, b"imported\\n")

@register_method("prints")
class Prints(Method):
    pass
"""


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder for temporary files: sockets have short names."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def place(temporary: Path) -> Path:
    return temporary / f"harness-{os.getuid()}"


def test_alike_workers_share_what_is_imported(registry: Registry, place: Path, tmp_path: Path) -> None:
    """And no worker shares a process with one that has other threads. A trial has the numbers that it has in the foreground."""
    results = tmp_path / "results"
    first, second = (WarmHandle(results, [], Resources()) for _ in range(2))
    other = WarmHandle(results, [], Resources(cpus=2))
    try:
        servers = [psutil.Process(handle.pid).ppid() for handle in (first, second, other)]
        assert servers[0] == servers[1] != servers[2]
        assert first.pid != second.pid
        memory = psutil.Process(second.pid).memory_full_info()
        assert memory.uss < memory.rss / 10, "what was imported is there once"
        spec = short_spec(registry, "digits/mlp", [Part("adamw")])
        second.start([UnitTrial(spec.hash, spec.to_json(), code_digest(registry, spec))])
        until(lambda: any(event["event"] == "ended" for event in second.events(1.0)), PATIENCE, "its end")
        mine, expected = TrialRecords(results, spec.hash).result(), run(registry, spec, tmp_path / "alone")
        assert mine is not None
        assert (mine.weights, timeless(mine.metrics)) == (expected.weights, timeless(expected.metrics))
        for handle in (first, second):
            handle.stop()
        assert psutil.Process(other.pid).is_running()
    finally:
        other.stop()
    until(lambda: not any(map(psutil.pid_exists, servers)), 30, "the end of servers that nobody needs")
    assert [path.name for path in place.iterdir()] == ["lock"]


def test_a_server_that_is_killed_is_replaced(place: Path, tmp_path: Path) -> None:
    """The warm processes that came from it live on."""
    first = WarmHandle(tmp_path, [], Resources())
    server = psutil.Process(first.pid).parent()
    assert server is not None
    server.kill()
    until(lambda: not psutil.pid_exists(server.pid), PATIENCE, "its end")
    second = WarmHandle(tmp_path, [], Resources())
    assert psutil.Process(second.pid).ppid() != server.pid
    assert psutil.Process(first.pid).is_running()
    first.stop()
    second.stop()


def test_a_worker_that_went_away_is_no_trouble(place: Path, tmp_path: Path) -> None:
    """Whether or not it had said where to print."""
    settings = {"results": str(tmp_path), "plugins": [], "commit_every": 1.0}
    warm_process(settings, dict(os.environ)).close()
    (address,) = (path for path in place.iterdir() if path.name != "lock")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(address))
    with warm_process(settings, dict(os.environ)) as channel:
        channel.settimeout(PATIENCE)
        assert channel.recv(100).startswith(b'{"event": "ready"')


def test_what_is_printed_goes_where_the_worker_prints(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handle = WarmHandle(tmp_path, [plugin(tmp_path, PRINTS)], Resources())
    shown = [Path(f"/proc/{handle.pid}/fd/{number}").stat() for number in (1, 2)]
    assert [(s.st_dev, s.st_ino) for s in shown] == [(s.st_dev, s.st_ino) for s in map(os.fstat, (1, 2))]
    handle.stop()
    assert "imported" in capfd.readouterr().err


def test_a_server_does_not_leave_a_worker_that_has_just_come(registry: Registry, temporary: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as worker:
        listener.bind(str(temporary / "server"))
        listener.listen()
        server = ForkServer(listener, {}, registry)
        worker.connect(str(temporary / "server"))
        assert not server._leave()
        listener.accept()[0].close()
        assert server._leave()
        assert not (temporary / "server").exists()


def test_a_folder_that_others_can_open_is_refused(place: Path) -> None:
    place.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match=f"{place}: must be a folder that its owner alone can open"):
        warm_process({}, {})
    place.rmdir()
    place.symlink_to("/tmp")
    with pytest.raises(PermissionError, match="remove it, or set TMPDIR"):
        warm_process({}, {})


def test_a_long_folder_for_temporary_files_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    assert forkserver._folder() == Path(f"/tmp/harness-{os.getuid()}")
