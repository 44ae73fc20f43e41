"""The fault table of `docs/faults.md` on a cluster of several nodes: nodes, heads and networks that go away."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from machines import PATIENCE, Machines, machines, mounts_alone, processes, raylet, token, until
from running.test_faults import Place, first_pass, undisturbed, worker_processes  # noqa: F401  # a fixture

from harness.recording.results import Results

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


def node_of(place: Place, cluster: Machines) -> Any:
    """A worker node that is at a trial of this grid."""
    with suppress(psutil.NoSuchProcess):
        at_work = {process.environ().get("RAY_RAYLET_PID") for process in worker_processes(place, "trial")}
        return next((node for node in cluster.nodes if raylet(node) in at_work), None)
    return None


def test_a_driver_beside_a_cluster_is_killed_and_then_a_node(tmp_path: Path, undisturbed: Place) -> None:  # noqa: F811
    """The cluster lives on and must be rid of the grid; the next driver finds it so, and goes on where a node dies under it."""
    place = Place(tmp_path)
    with machines(2) as cluster:
        place.pace(0.3)
        driver = place.start("--address", cluster.address)
        until(place.committed, PATIENCE, "a commit")
        first_pass(place.results, place.name)
        driver.kill()
        driver.communicate()
        place.nothing_runs()

        driver = place.start("--address", cluster.address)
        until(partial(place.committed, 2), PATIENCE, "a commit of the second attempt")
        cluster.remove(until(lambda: node_of(place, cluster), PATIENCE, "a node at work"))
        place.pace(0)
        shown = driver.communicate(timeout=PATIENCE)[0]
        assert driver.returncode == 0, shown
        place.nothing_runs()
    place.as_undisturbed(undisturbed)


def test_a_node_is_drained_as_preempted(tmp_path: Path, undisturbed: Place) -> None:  # noqa: F811
    """As a cloud does with a spot machine: it says so, and takes it away."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    place = Place(tmp_path)
    with machines(2) as cluster:
        place.pace(1)
        driver = place.start("--address", cluster.address)
        until(
            lambda: len(place.committed()) == 2, PATIENCE, "a commit on each node"
        )  # an attempt begins in its process
        node = until(lambda: node_of(place, cluster), PATIENCE, "a node at work")
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = time.time() + 5
        client = GcsClient(address=cluster.address)
        accepted, why = client.drain_node(node.node_id, reason, "preempted", int(deadline * 1000))
        assert accepted, why
        time.sleep(max(0.0, deadline - time.time()))  # a cloud keeps to what it has said
        cluster.remove(node)
        place.pace(0)
        shown = driver.communicate(timeout=PATIENCE)[0]
        assert driver.returncode == 0, shown
        place.nothing_runs()
    place.as_undisturbed(undisturbed)
    attempts = [Results(place.results).trial(hash).result().attempt for hash in place.hashes]  # type: ignore[union-attr]
    assert max(attempts) == 2, "taken up once more, and not as often as a trial that fails"


def test_the_head_is_lost_and_a_new_cluster_goes_on(tmp_path: Path, undisturbed: Place) -> None:  # noqa: F811
    place = Place(tmp_path)
    with machines(1) as cluster:
        place.pace(0.3)
        driver = place.start("--address", cluster.address)
        until(place.committed, PATIENCE, "a commit")
        cluster.stop()
        shown = driver.communicate(timeout=PATIENCE)[0]
        assert driver.returncode != 0, shown
        assert "Traceback" not in shown, shown
        place.nothing_runs()
    place.pace(0)
    with machines(1) as cluster:
        shown = place.run("--address", cluster.address)
    place.as_undisturbed(undisturbed)
    place.nothing_runs()


@contextmanager
def namespace(name: str, link: str) -> Iterator[None]:
    """A host of its own, 10.77.61.2, that reaches this one at 10.77.61.1 by a cable that can be cut."""
    commands = [
        f"ip netns add {name}",
        f"ip link add {link} type veth peer name {link}n",
        f"ip link set {link}n netns {name}",
        f"ip addr add 10.77.61.1/24 dev {link}",
        f"ip link set {link} up",
        f"ip netns exec {name} ip addr add 10.77.61.2/24 dev {link}n",
        f"ip netns exec {name} ip link set {link}n up",
        f"ip netns exec {name} ip link set lo up",
    ]
    try:
        for line in commands:
            done = subprocess.run(line.split(), capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(f"network namespaces cannot be made here ({done.stderr.strip()})")
        yield
    finally:
        subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def end_all(folder: str) -> None:
    """Ends the processes of a cluster by their own ids."""
    for process in processes(folder):
        try:
            process.kill()
        except psutil.Error:
            continue


def dead_nodes(address: str) -> list[str]:
    """The nodes that a cluster has given up."""
    from ray._raylet import GcsClient
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    nodes = GcsClient(address=address).get_all_node_info().values()
    return [node.node_manager_address for node in nodes if node.state == GcsNodeInfo.DEAD]


@pytest.mark.skipif(not shutil.which("ip") or os.geteuid() != 0, reason="network namespaces need root and iproute2")
def test_the_network_of_a_node_is_cut(
    tmp_path: Path,
    undisturbed: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The node is declared dead, its trials go on elsewhere, and what still runs there cannot write."""
    place, folder = Place(tmp_path), Path(f"/tmp/hn-{os.getpid()}")
    name, link = f"hn{os.getpid()}", f"hv{os.getpid() % 100000}"
    settings = token() | {
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "6",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    }
    for setting, value in settings.items():
        monkeypatch.setenv(setting, value)
    ray = str(Path(__import__("sys").executable).parent / "ray")
    shared = ["--object-store-memory=80000000", "--disable-usage-stats"]

    def start(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr

    with mounts_alone(), namespace(name, link):
        try:
            head = [ray, "start", "--head", "--node-ip-address=10.77.61.1", "--port=26379", "--num-cpus=1"]
            start(*head, f"--temp-dir={folder}/h", "--include-dashboard=false", *shared)
            worker = ["ip", "netns", "exec", name, ray, "start", "--address=10.77.61.1:26379", "--num-cpus=1"]
            start(*worker, "--node-ip-address=10.77.61.2", *shared)
            place.pace(1)
            driver = place.start("--address", "10.77.61.1:26379")
            until(lambda: len(place.committed()) >= 2, PATIENCE, "a commit on each node")
            subprocess.run(["ip", "link", "set", link, "down"], check=True)
            until(lambda: dead_nodes("10.77.61.1:26379"), PATIENCE, "the node's death")
            place.pace(0.05)
            shown = driver.communicate(timeout=PATIENCE)[0]
            assert driver.returncode == 0, shown
        finally:
            end_all(str(folder))
            end_all("10.77.61.1:26379")  # a server for clients, which no folder names
            shutil.rmtree(folder, ignore_errors=True)
    place.as_undisturbed(undisturbed)
    place.nothing_runs()
