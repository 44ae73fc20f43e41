"""`harness doctor` on a machine that is well, and on one that is not; `harness gc` on a folder."""

import dataclasses
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import harness, plugin

from harness.recording import store
from harness.recording.results import Results
from harness.running import doctor, nodes
from harness.running.scheduling import Infrastructure


@pytest.mark.slow
def test_a_machine_that_is_well(tmp_path: Path) -> None:
    shown = harness("doctor", "--results", tmp_path)
    assert "wrong" not in shown
    for name in ("versions", "plugins", "results", "gpus", "tracking", "token", "ray", "node"):
        assert f"ok       {name}" in shown or f"warning  {name}" in shown
    assert not list(tmp_path.iterdir()), "neither a marker nor a database stays"


@pytest.mark.slow
def test_what_is_wrong_is_named_with_what_to_do(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("/proc, in which no folder can be made, is Linux's")
    shown = harness("doctor", "--results", "/proc/results", "--tracking", "http://127.0.0.1:9", status=3, timeout=300)
    (tmp_path / "file").write_text("")
    assert "allowed: a folder" in harness("doctor", "--results", tmp_path / "file" / "r", status=2)
    assert "wrong    results" in shown
    assert "give another folder" in shown
    assert "wrong    tracking" in shown
    assert "that the server runs" in shown
    assert "doctor: a grid would not run as things are" in shown


def test_a_version_out_of_range_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda package: "1.0" if package == "torch" else real(package))
    (finding,) = doctor._versions()
    assert finding.state == "wrong"
    assert "torch 1.0, allowed: " in finding.detail


def test_an_address_of_mlflow_is_shown_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "reachable", lambda uri: None)
    finding = doctor._tracking(Results(tmp_path), "postgresql://me:hidden@db/runs")
    assert (finding.state, finding.detail) == ("ok", "postgresql://db/runs answers")
    with pytest.raises(store.TrackingError, match="found 'nowhere://db/runs', allowed: "):
        store.scheme_of("nowhere://me:hidden@db/runs")


def test_a_plugin_that_does_not_load_is_a_warning(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module\n")
    finding = doctor._registered([broken])
    assert finding.state == "warning"
    assert "no_such_module" in finding.detail


def test_a_name_that_is_registered_twice_is_wrong(tmp_path: Path) -> None:
    finding = doctor._registered([plugin(tmp_path, "@register_method('sgd')\nclass Mine(Method):\n    pass\n")])
    assert finding.state == "wrong"
    assert "method 'sgd' is registered twice" in finding.detail
    assert "rename one of the two" in finding.advice


@pytest.mark.parametrize("name", ["tasks.py", "methods/__init__.py"])
def test_a_file_that_shadows_a_package_is_wrong(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    monkeypatch.delitem(sys.modules, name.partition("/")[0].removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor._registered([])
    assert finding.state == "wrong"
    assert f"is shadowed: found {file}, must lie in " in finding.detail
    assert "move or rename that file" in finding.advice


@pytest.mark.parametrize(("free", "state"), [(doctor.FREE, "ok"), (doctor.FREE - 1, "warning")])
def test_a_results_folder_whose_disk_is_nearly_full(
    free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    (finding,) = doctor._storage(Results(tmp_path))
    assert finding.state == state
    assert f"{tmp_path}, 5.0 GiB free" in finding.detail
    assert ("harness gc" in finding.advice) == (state == "warning")


def test_the_results_folders_own_database_is_opened(tmp_path: Path) -> None:
    assert doctor._tracking(Results(tmp_path), None).state == "ok"
    assert not list(tmp_path.iterdir()), "none is left behind"
    missing = doctor._tracking(Results(tmp_path / "missing"), None)
    assert (missing.state, "mend the folder's permissions" in missing.advice) == ("wrong", True)
    (tmp_path / "mlflow.db").write_text("this is no database, and it is as long as a header is")
    broken = doctor._tracking(Results(tmp_path), None)
    assert broken.state == "wrong"
    assert "file is not a database" in broken.detail
    assert "harness sync builds it anew" in broken.advice


def test_a_database_that_nobody_can_write_to_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held by another for good, which is what a file system without locks for SQLite looks like."""
    real = sqlite3.connect
    monkeypatch.setattr("harness.recording.store.reachable", lambda uri: None)
    monkeypatch.setattr("sqlite3.connect", lambda database, timeout: real(database, timeout=0.1))
    with real(tmp_path / "mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        finding = doctor._tracking(Results(tmp_path), None)
    assert finding.state == "wrong"
    assert "database is locked" in finding.detail


@pytest.mark.parametrize(
    ("mode", "variable", "address", "state", "says"),
    [
        (0o600, "", "head:6379", "ok", "from "),
        (0o600, "", None, "ok", "a local cluster makes its own"),
        (0o640, "", "head:6379", "warning", "has mode 640: others can use it"),
        (0o604, "given", None, "warning", "has mode 604: others can use it"),
        (None, "given", "head:6379", "ok", "from RAY_AUTH_TOKEN"),
        (None, "", None, "ok", "a local cluster makes its own"),
        (None, "", "head:6379", "wrong", "none is given"),
    ],
)
def test_the_token_is_there_and_nobody_elses(
    mode: int | None,
    variable: str,
    address: str | None,
    state: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", variable)
    file = tmp_path / ".ray" / "auth_token"
    if mode is not None:
        file.parent.mkdir()
        file.write_text("hidden")
        file.chmod(mode)
    finding = doctor._token(address)
    assert finding.state == state
    assert says in finding.detail
    assert "hidden" not in finding.detail
    assert finding.advice == {"ok": "", "warning": f"chmod 600 {file}"}.get(state, finding.advice)
    if state == "wrong":
        assert f"put the cluster's into {file}" in finding.advice


# The nodes, with a cluster that answers as it is told to.


class Told:
    """A stand-in for `ray` with one node."""

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeManagerHostname": "w1", "NodeID": "1", "Resources": {"CPU": 4.0, "GPU": 2.0}}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0, "GPU": 2.0}


@contextmanager
def joined(address: str | None) -> Iterator[Told]:
    yield Told()


def looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, usable: int = 2, late: float = 0.0, **fields: Any
) -> list[doctor.Finding]:
    """What is found of a node that has two GPUs and is well, but for some fields of its answer."""

    def ask(ray: Any, node: dict[str, Any], marked: Path) -> nodes.Answer:
        own = nodes.answer(str(marked), False)
        well: dict[str, Any] = {"gpus": 2, "free": doctor.FREE, "time": own.time + late}
        return dataclasses.replace(own, **well | fields)

    monkeypatch.setattr(doctor, "cluster", joined)
    monkeypatch.setattr(doctor, "ask", ask)
    monkeypatch.setattr(doctor, "on", lambda ray, node, function: usable)
    ray, *found = doctor._cluster(Results(folder), "head:6379")
    assert ray.state == "ok"
    assert not list(folder.iterdir()), "no marker stays"
    return found


def test_a_node_that_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for late in (0.0, 1.9, -1.9):
        (finding,) = looked_at(tmp_path, monkeypatch, late=late)
        assert (finding.name, finding.state) == ("node w1", "ok")
        assert "2 GPUs, 5.0 GiB free" in finding.detail


@pytest.mark.parametrize(
    ("fields", "state", "says", "advice"),
    [
        ({"versions": nodes.versions() | {"torch": "1.0"}}, "wrong", "torch 1.0 there, ", "same lock"),
        ({"versions": nodes.versions() | {"python": "3.8"}}, "wrong", "python 3.8 there, ", "same lock"),
        ({"sees": False}, "wrong", "does not see ", "a folder that all nodes share"),
        ({"unwritable": "Read-only file system"}, "wrong", "(Read-only file system)", "mount it there for writing"),
        ({"left": ".nothing"}, "wrong", "what it writes does not arrive here", "mount it there for writing"),
        ({"late": 9.0}, "warning", "its clock is off by ", "time server"),
        ({"late": -9.0}, "warning", "its clock is off by ", "time server"),
        ({"free": doctor.FREE - 1}, "warning", "5.0 GiB free where", "make room there"),
        ({"usable": 0}, "warning", "its driver lists 2 GPUs, torch can use 0", "older than this torch needs"),
        ({"gpus": 3, "usable": 3}, "warning", "its driver lists 3 GPUs, Ray gives trials 2", "CUDA_VISIBLE_DEVICES"),
        ({"gpus": 0}, "warning", "Ray gives trials 2 GPUs, its driver lists 0", "without --num-gpus"),
    ],
)
def test_a_node_that_is_not_as_it_must_be_is_named(
    fields: dict[str, Any], state: str, says: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = looked_at(tmp_path, monkeypatch, **fields)
    assert (finding.name, finding.state) == ("node w1", state)
    assert says in finding.detail
    assert advice in finding.advice


def test_everything_that_is_wrong_with_a_node_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked_at(tmp_path, monkeypatch, sees=False, free=0, late=60.0)
    assert [finding.state for finding in found] == ["wrong", "warning", "warning"]


def test_a_node_that_does_not_answer_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(ray: Any, node: dict[str, Any], marked: Path) -> nodes.Answer:
        raise TimeoutError("nothing came\nand more")

    monkeypatch.setattr(doctor, "cluster", joined)
    monkeypatch.setattr(doctor, "ask", ask)
    finding = list(doctor._cluster(Results(tmp_path), "head:6379"))[-1]
    assert (finding.state, finding.detail) == ("wrong", "TimeoutError: nothing came")


def test_a_cluster_that_does_not_take_the_token_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refuses(address: str | None) -> Iterator[Any]:
        raise Infrastructure(f"the cluster at {address} does not answer (AuthenticationError: invalid token)")
        yield

    monkeypatch.setattr(doctor, "cluster", refuses)
    (finding,) = doctor._cluster(Results(tmp_path), "head:6379")
    assert finding.state == "wrong"
    assert "invalid token" in finding.detail
    assert "is the token in RAY_AUTH_TOKEN or ~/.ray/auth_token the cluster's?" in finding.advice


def test_gpus_are_those_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nodes.listed_gpus() == 0, "no driver"
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: a)'\necho '  MIG part'\necho 'GPU 1: two (UUID: b)'\n")
    program.chmod(0o755)
    assert nodes.listed_gpus() == 2
    assert nodes.answer(str(tmp_path / "marker"), False).gpus == 2


def test_gc_of_an_empty_folder_and_of_none(tmp_path: Path) -> None:
    assert "everything there is needed" in " ".join(harness("gc", "--results", tmp_path).split())
    told = harness("gc", "--results", tmp_path / "resluts", status=2)
    assert "resluts', which does not exist, allowed: a folder with results" in told
