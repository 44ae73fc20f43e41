"""The fork server: one for alike workers of a node, there when it is needed, gone when it is not."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from machines import PATIENCE, until
from support import harness, plugin, run, timeless, write_grid

from harness.conformance import short_spec
from harness.identity import Part, code_digest
from harness.recording.records import TrialRecords
from harness.registry import Registry
from harness.resources import Resources
from harness.running import forkserver
from harness.running.children import WarmHandle
from harness.running.forkserver import ForkServer, warm_process
from harness.running.nodes import answer
from harness.running.units import UnitTrial

PRINTS = """
import os, sys
os.write(2, b"imported\\n")
assert "harness.training.trial" in sys.modules, "what trains is imported once, before anything of an author's"

@register_method("prints")
class Prints(Method):
    pass
"""


GRID = "name: demo\ntasks: [digits/mlp]\nmethods: [adamw]\nseeds: 1\n"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short folder for temporary files: sockets have short names."""
    tmp_path_factory.getbasetemp()  # pytest's own lie elsewhere, whichever test comes first
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


def test_a_server_whose_folder_is_gone_makes_no_other(registry: Registry, place: Path) -> None:
    """The lock would, open to others, and every later grid would be refused there."""
    place.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "server"))
        listener.listen()
        (place / "server").unlink()
        place.rmdir()
        assert ForkServer(listener, {}, registry)._leave()
    assert not place.exists()


def test_addresses_of_servers_that_were_killed_are_cleared_away(place: Path, tmp_path: Path) -> None:
    """Those under which another one listens, or waits to, stay."""
    place.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "dead"))
        dead.listen()
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(place / "busy"))
        busy.listen(0)
        waiting.connect(str(place / "busy"))
        handle = WarmHandle(tmp_path, [], Resources())
        assert {"busy", "lock"} < {path.name for path in place.iterdir()}
        assert not (place / "dead").exists()
        assert handle.pid
        handle.stop()


def test_an_import_that_hangs_does_not_keep_a_server_for_ever(temporary: Path) -> None:
    hangs = "import sys, time; from harness.running import forkserver as f; f.IMPORTS = 1; f._imported = time.sleep; f.main()"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as worker:
        listener.bind(str(temporary / "server"))
        listener.listen()
        worker.connect(str(temporary / "server"))
        command = [sys.executable, "-c", hangs, str(listener.fileno()), "600"]
        subprocess.run(command, pass_fds=[listener.fileno()], check=True)
        listener.close()
        worker.settimeout(PATIENCE)
        with suppress(ConnectionResetError):
            assert worker.recv(100) == b""


def test_a_folder_that_others_can_open_is_refused(place: Path, tmp_path: Path) -> None:
    place.mkdir(mode=0o755)
    told = harness(
        "run", write_grid(tmp_path, GRID), "--results", tmp_path / "results", status=3, TMPDIR=str(place.parent)
    )
    assert f"{place}: must be a folder that its owner alone can open; remove it, or set TMPDIR" in " ".join(
        told.split()
    )
    assert "must be a folder" in answer(str(tmp_path / "marker"), False).unsafe
    with pytest.raises(PermissionError, match=f"{place}: must be a folder that its owner alone can open"):
        warm_process({}, {})
    place.rmdir()
    place.symlink_to("/tmp")
    with pytest.raises(PermissionError, match="remove it, or set TMPDIR"):
        warm_process({}, {})


def test_a_long_folder_for_temporary_files_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    assert forkserver.socket_folder() == Path(f"/tmp/harness-{os.getuid()}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path.root + "é" * (forkserver.LONGEST - 1)))
    assert forkserver.socket_folder() == Path(f"/tmp/harness-{os.getuid()}")
