"""A worker's side of the warm process: it hands trials over one by one and learns how they end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from harness.recording.grids import without_password
from harness.resources import REPEATABLE_CUBLAS, Resources, Seat, thread_variables
from harness.running.forkserver import warm_process
from harness.running.units import UnitTrial

SECRETS = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|(API|ACCESS|PRIVATE)KEY|CONNECTION_?STRING"
    r"|(^SSH|_)PASS(_|$)|_(PWD|PAT)(_|$)|(^|_)(KEY|JWT|DSN|SAS)(_|$)|_AUTH(_CONFIG)?$"
)
"""Variables with such names, in capitals, do not reach an author's code. `PWD` and `PATH` are none.

Nor do those whose value holds an address with a password, such as that of a database or a proxy.
"""


UNTOUCHED_CUDA = "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
"""Torch asks the driver's library whether there is a GPU. It would ask CUDA, which works in no process forked after that, and a
plugin may well want to know at its import."""


class WarmDied(RuntimeError):
    """The warm process is gone: infrastructure trouble, so the unit is tried again."""


def child_environment(resources: Resources) -> dict[str, str]:
    """The environment of trials: threads set for every library, no GPU unless asked for, no secrets."""
    secret = {
        name for name, value in os.environ.items() if SECRETS.search(name.upper()) or without_password(value) != value
    }
    kept = {name: value for name, value in os.environ.items() if name not in secret}
    kept |= thread_variables(resources.threads)
    if resources.gpus:
        kept |= dict([REPEATABLE_CUBLAS, UNTOUCHED_CUDA])
    else:
        kept["CUDA_VISIBLE_DEVICES"] = ""
    return kept


LEAST = 1 << 30
"""Bytes that a trial which asked for none may always take.

Importing torch and making one optimizer take 720 MiB, which the warm process shares with its children and which count for
each of them all the same. A limit below that would end every trial, and would protect no other.
"""


def fair_memory(resources: Resources) -> int:
    """The memory limit of a trial that asked for none: its share of 85 % of what there is, by CPUs."""
    memory, cpus = usable()
    share = max(resources.cpus, 1.0) / (node_cpus() or cpus)
    return max(LEAST, int(0.85 * memory * min(1.0, share)))


def node_cpus() -> float:
    """The CPUs that Ray gives to trials on this node, which may be fewer than it has: 0 where no Ray runs."""
    import ray

    if not ray.is_initialized():
        return 0.0
    here = ray.get_runtime_context().get_node_id()
    return next((float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["NodeID"] == here), 0.0)


def usable(root: Path = Path("/")) -> tuple[int, float]:
    """Bytes and CPUs that this process may use: the machine's, or fewer where a container or a batch job has limits.

    Args:
        root: of the file system, where Linux shows the limits of the group that a process is in and of those above it.
    """
    memory, cpus = [psutil.virtual_memory().total], [float(os.cpu_count() or 1)]
    if sys.platform == "linux":  # macOS binds no process to CPUs
        cpus.append(float(len(os.sched_getaffinity(0))))
    with contextlib.suppress(OSError):  # another system than Linux, or one without these files
        group = Path((root / "proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/"))
        for folder in (root / "sys/fs/cgroup" / name for name in (group, *group.parents)):
            with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                memory.append(int((folder / "memory.max").read_text()))
            with contextlib.suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text().split()
                cpus.append(int(quota) / int(period))
    return min(memory), min(cpus)


class WarmHandle:
    """Has a warm process made and talks to it.

    Args:
        results: the results folder.
        plugins: plugin files to load.
        resources: of the units that it will run.
        commit_every: seconds between commits of a trial.
    """

    def __init__(self, results: Path, plugins: list[Path], resources: Resources, commit_every: float = 15.0) -> None:
        self.resources = resources
        self._memory = resources.memory or fair_memory(resources)
        settings = {"results": str(results), "plugins": [str(p) for p in plugins], "commit_every": commit_every}
        self._channel = warm_process(settings, child_environment(resources))
        self._pid: int | None = None
        self._buffer = b""
        self._events: list[dict[str, Any]] = []

    @property
    def pid(self) -> int:
        """The process id of the warm process, once there is one.

        Raises:
            WarmDied: if it is gone.
        """
        while self._pid is None:
            self._receive()
        return self._pid

    def start(self, trials: Sequence[UnitTrial], seat: Seat | None = None) -> None:
        """Hands over a trial, or the seeds of a stack: these have as much time as one after another.

        Args:
            trials: what to run.
            seat: the process's place among the ranks of a trial that has several.
        """
        limits = {
            "memory": self._memory,
            "time": self.resources.time and self.resources.time * len(trials),
            "gpu_share": self.resources.gpus,
        }
        orders = [asdict(trial) for trial in trials]
        self._send(orders=orders, limits=limits, seat=asdict(seat) if seat else None)

    def events(self, timeout: float) -> list[dict[str, Any]]:
        """What the warm process has said within `timeout` seconds: as soon as there is something, nothing if not.

        Raises:
            WarmDied: if it is gone.
        """
        if not self._events:
            readable, _, _ = select.select([self._channel], [], [], timeout)
            if readable:
                self._receive()
        events, self._events = self._events, []
        return events

    def stop(self, wait: float = 15.0) -> None:
        """Lets a running trial commit and stop, and ends the warm process."""
        deadline = time.monotonic() + wait
        with contextlib.suppress(WarmDied, OSError):  # it is gone
            self._send(stop=True)
            while (left := deadline - time.monotonic()) > 0:
                self.events(left)
            if self._pid is not None:
                os.kill(self._pid, signal.SIGKILL)
        self._channel.close()

    def _send(self, **message: Any) -> None:
        try:
            self._channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise WarmDied("the warm process is gone") from error

    def _receive(self) -> None:
        try:
            data = self._channel.recv(65536)
        except OSError as error:
            raise WarmDied("the warm process is gone") from error
        if not data:
            raise WarmDied("the warm process is gone")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for event in map(json.loads, lines):
            self._pid = event.get("pid", self._pid)
            self._events.append(event)
