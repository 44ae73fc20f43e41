"""A grid whose rest fits on no node of the cluster any more: it ends and says so."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from machines import PATIENCE, descended, free_port, token, until
from ray.util import get_node_ip_address
from support import harness, write_grid

from harness.resources import Resources
from harness.running import stalling
from harness.running.stalling import Stall


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(stalling, "time", SimpleNamespace(monotonic=lambda: self.now))

    def minutes(self, number: int, stall: Stall, running: bool = False) -> str:
        """What is told last, looking every minute."""
        told = ""
        for _ in range(number):
            self.now += 60
            told = stall.look(lambda: running)
        return told


def test_what_fits_on_no_node_is_waited_for_half_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, nodes = Clock(monkeypatch), [{"CPU": 4.0}]
    waiting = {"a": Resources(gpus=1), "b": Resources(cpus=4), "c": Resources(cpus=2, ranks=3)}
    stall = Stall(lambda: waiting, lambda: nodes)
    assert clock.minutes(60, stall, running=True) == ""
    assert clock.minutes(30, stall) == ""
    told = clock.minutes(1, stall)
    assert told.startswith("nothing has run for 31 min, and no node has come for a (resources.gpus: found 1, ")
    assert "c (resources.ranks: found 3, allowed: at most 2 " in told
    assert "b (" not in told


def test_a_node_that_comes_or_a_unit_that_runs_begins_the_wait_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, nodes = Clock(monkeypatch), [{"CPU": 4.0}]
    stall = Stall(lambda: {"a": Resources(gpus=1)}, lambda: nodes)
    assert clock.minutes(29, stall) == ""
    nodes.append({"CPU": 1.0, "GPU": 1.0})
    assert clock.minutes(600, stall) == "", "others have the GPU, and may have it for long"
    nodes.pop()
    assert clock.minutes(29, stall) == ""
    assert clock.minutes(1, stall, running=True) == ""
    assert clock.minutes(30, stall) == ""
    assert clock.minutes(1, stall)


SCRIPT = """
import sys
from harness.resources import Resources
from harness.running import stalling
from harness.running.scheduling import Infrastructure, cluster, run_units
from harness.running.units import Unit, UnitTrial

class Deaf:
    def __getattr__(self, name):
        return lambda *arguments: None

stalling.PATIENCE = 3.0
settings = {"results": sys.argv[1], "plugins": [], "commit_every": 1.0, "report_every": 0.2, "slots": 1}
with cluster(None, 1):
    try:
        run_units([Unit([UnitTrial("a", "{}", "code")], Resources(gpus=1), "the cell")], settings, Deaf())
    except Infrastructure as error:
        print(error)
"""


@pytest.mark.chaos
@pytest.mark.slow
def test_tune_does_not_wait_for_ever(tmp_path: Path) -> None:
    """As where the only node with a GPU has been lost."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | token() | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "no node has come for the cell (resources.gpus: found 1, allowed: at most 0" in done.stdout
    assert "a rerun goes on once there is one" in done.stdout
    assert not list(tmp_path.iterdir()), "Tune's own folder is gone"


# A cluster that grows from nothing.

HEAD = "f" * 51 + "0" * 5
"""The name that Ray's provider of fake nodes gives the head."""

GROWS: dict[str, Any] = {
    "cluster_name": "grows",
    "max_workers": 1,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": HEAD,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "big": {"resources": {"CPU": 1, "big": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}

GRID = """
name: grows
tasks: [digits/mlp]
methods: [adamw]
seeds: 2
recipes: [{set: {steps: 20}}]
resources: {custom: {big: 1}}
"""


@contextmanager
def growing(folder: Path) -> Iterator[str]:
    """The address of a head without CPUs, whose autoscaler is Ray's own and whose nodes are started on this machine."""
    mark, port, place = secrets.token_hex(8), free_port(), Path(f"/tmp/hg-{os.getpid()}")
    config = folder / "cluster.yaml"
    provider = GROWS["provider"] | {"gcs_address": f"{get_node_ip_address()}:{port}"}
    config.write_text(json.dumps(GROWS | {"provider": provider}))
    environment = (
        os.environ | token() | {"HARNESS_PLACE": mark, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    )
    environment |= {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    }
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "start", "--head", "--num-cpus=0", f"--port={port}", f"--temp-dir={place}", "--disable-usage-stats"]
    command += [f"--autoscaling-config={config}", "--include-dashboard=false", "--object-store-memory=80000000"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        yield f"127.0.0.1:{port}"
    finally:

        def gone() -> bool:
            for process in (left := descended(mark)):
                with suppress(psutil.Error):
                    process.kill()
            return not left

        until(gone, PATIENCE, "the end of the cluster")
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_a_cluster_grows_from_nothing_for_a_grid(tmp_path: Path) -> None:
    """Without a word the grid is refused, as it would wait for ever; with one the autoscaler starts the node."""
    place = ["run", write_grid(tmp_path, GRID), "--results", tmp_path / "results"]
    with growing(tmp_path) as address:
        place += ["--address", address]
        assert "resources.cpus: found 1, allowed: at most 0" in harness(*place, status=2, **token())
        harness(*place, "--node-type", "CPU=1,big=1", timeout=PATIENCE, **token())
    ended = [json.loads(file.read_text()) for file in (tmp_path / "results" / "trials").glob("*/result.json")]
    assert [result["status"] for result in ended] == ["finished"] * 2
