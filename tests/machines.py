"""Ray clusters of several nodes on this machine, in token mode, and the processes of a test."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from harness.running.scheduling import own_token

PATIENCE = 600.0
"""Seconds that a state is given to come about where nothing but the machine's load decides how soon."""


def until(condition: Callable[[], Any], seconds: float = 120.0, what: str = "what was waited for") -> Any:
    """Waits until something holds, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)
    return found


@dataclass
class Machines:
    """A head without CPUs and workers beside it: each a `ray start` of its own, ended by its own process ids.

    Args:
        folder: where Ray keeps its sessions; short, since it holds sockets.
        environment: of everything that belongs to the cluster, the token included.
    """

    folder: Path
    environment: dict[str, str]
    address: str = ""
    dashboard: str = ""
    nodes: list[Any] = field(default_factory=list)
    _cluster: Any = None

    def start(self, workers: int, dashboard: bool = False, **options: Any) -> None:
        """Starts the head and its workers. Jobs need the dashboard, and nothing else does: it is ten processes."""
        from ray._private.utils import write_ray_address
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": dashboard,
                "dashboard_port": 0,
                "dashboard_agent_listen_port": free_port(),  # the default is taken where another Ray runs
                "temp_dir": str(self.folder),
                "object_store_memory": 80 << 20,
                "env_vars": self.environment,
            },
        )
        self.address = self._cluster.address
        write_ray_address(self.address, str(self.folder))  # as `ray start` does: jobs look here for their cluster
        self.dashboard = f"http://{self._cluster.webui_url}"
        for _ in range(workers):
            self.add(**options)
        self._cluster.wait_for_nodes(PATIENCE)

    @property
    def metrics_port(self) -> int:
        """Where the head shows Prometheus its numbers, and those of the drivers beside it."""
        return int(self._cluster.head_node.metrics_export_port)

    def add(self, **options: Any) -> Any:
        """One more worker."""
        node = self._cluster.add_node(
            wait=False,
            num_cpus=options.pop("num_cpus", 1),
            object_store_memory=80 << 20,
            env_vars=self.environment,
            **options,
        )
        self.nodes.append(node)
        return node

    def remove(self, node: Any) -> None:
        """Kills a worker node at once, with all that runs on it: at full pace a trial could end before it misses its worker."""
        self.nodes.remove(node)
        below = on_node(node)
        self._cluster.remove_node(node, allow_graceful=False)
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert not psutil.wait_procs(below, timeout=PATIENCE)[1]

    def stop(self) -> None:
        """Ends all of it."""
        if self._cluster is not None:
            self._cluster.shutdown()
        self.nodes.clear()


@contextmanager
def mounts_alone() -> Iterator[None]:
    """No other test that asks for this runs meanwhile, in any worker of pytest.

    What enters a network namespace gets a copy of all mounts with it. A disk that is unmounted here lives on in that copy, and
    mounting it again gives the same disk in the same state.
    """
    with FileLock(Path(tempfile.gettempdir()) / "harness-tests-mounts.lock"):
        yield


def free_port() -> int:
    """A port that nothing listens on, below those that the system gives to whoever asks for any."""
    while True:
        port = 21000 + secrets.randbelow(5000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def token() -> dict[str, str]:
    """Token mode, with the token of this process: Ray reads it once in a process."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": own_token()}


@contextmanager
def machines(workers: int = 2, environment: dict[str, str] | None = None, **options: Any) -> Iterator[Machines]:
    """A cluster for a test; this process gets its token for as long."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = (
        token()
        | {"PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "0"}
        | (environment or {})
    )
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    folder = Path(f"/tmp/hr-{secrets.token_hex(3)}")
    cluster = Machines(folder, settings)
    try:
        cluster.start(workers, **options)
        yield cluster
    finally:
        try:
            cluster.stop()
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
            subprocess.run(["rm", "-rf", str(folder)], check=False)


def processes(mark: str) -> list[psutil.Process]:
    """The processes whose command line holds a mark, such as a results folder."""
    return _found(lambda process: mark in " ".join(process.cmdline()))


def descended(mark: str) -> list[psutil.Process]:
    """The processes whose environment holds a mark as a value: Ray's own name no folder, but inherit it from the driver."""
    return _found(lambda process: mark in process.environ().values())


def on_node(node: Any) -> list[psutil.Process]:
    """Ray's workers on a node of these clusters, and what they have started. It has left their tree where it is a server."""
    return _found(lambda process: process.environ().get("RAY_RAYLET_PID") == raylet(node))


def raylet(node: Any) -> str:
    """The process id of a node's own, which all that runs there has in its environment as `RAY_RAYLET_PID`."""
    return str(node.all_processes["raylet"][0].process.pid)


def _found(holds: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and holds(process):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
