"""Asks every node of a cluster what a grid needs to know of it."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from harness import sources
from harness.recording.environment import PACKAGES
from harness.recording.records import write_atomically

T = TypeVar("T")

TIMEOUT = 120.0
"""Seconds that a node is given to answer: it may have to unpack what was sent first."""


@dataclass(frozen=True)
class Answer:
    """What a worker on a node finds there."""

    host: str
    versions: dict[str, str]
    cpus: int
    gpus: int
    """How many its driver lists, whatever Ray gives to trials."""
    free: int
    """Bytes free where it keeps temporary files, Ray's among them."""
    time: float
    sees: bool
    """Whether it sees the marker that was written where it was asked from."""
    left: str
    """The name of the file that it left beside that marker."""
    unwritable: str
    """Why it could leave none; empty if it could."""
    code: str
    """The digest of the package that it runs, if it was asked for."""
    unsafe: str
    """Why trials can get no process there; empty if they can."""


def versions() -> dict[str, str]:
    """What is installed here, without the part of a version that names a build: a laptop has other builds than a GPU."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package).partition("+")[0]
    return found


def differences(there: dict[str, str], here: dict[str, str]) -> list[str]:
    """What is installed otherwise: `torch 2.8.0 there, 2.9.0 here`.

    >>> differences({"ray": "2.59.0"}, {"ray": "2.60.0", "numpy": "2.4"})
    ['ray 2.59.0 there, 2.60.0 here', 'numpy missing there, 2.4 here']
    """
    return [f"{p} {there.get(p, 'missing')} there, {own} here" for p, own in here.items() if there.get(p) != own]


@contextmanager
def marker(folder: Path) -> Iterator[Path]:
    """A file in a folder that others look for.

    Raises:
        RecordsError: if it cannot be written.
    """
    path = folder / f".marker-{uuid.uuid4().hex}"
    write_atomically(path, "here")
    try:
        yield path
    finally:
        for file in folder.glob(f"{path.name}*"):
            file.unlink(missing_ok=True)


def ask(ray: Any, node: dict[str, Any], marked: Path, with_code: bool = False) -> Answer:
    """A worker on a node, asked.

    Args:
        node: one of `ray.nodes()`.
        marked: a marker.
        with_code: also digests the package that it runs.

    Raises:
        Exception: whatever keeps the worker from answering.
    """
    return on(ray, node, answer, str(marked), with_code)


def on(ray: Any, node: dict[str, Any], function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a worker on a node.

    Args:
        node: one of `ray.nodes()`.

    Raises:
        Exception: what the function raises, and whatever keeps the worker from answering.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    remote = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(function)
    given: T = ray.get(remote.remote(*arguments), timeout=TIMEOUT)
    return given


def answer(marked: str, with_code: bool) -> Answer:
    """What this process finds on its node."""
    from harness.running.forkserver import socket_folder
    from harness.running.staging import digest

    path, unwritable, unsafe = Path(marked), "", ""
    own = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        own.write_text("there")
    except OSError as error:
        unwritable = str(error)
    try:
        socket_folder()
    except OSError as error:
        unsafe = str(error)
    return Answer(
        host=socket.gethostname(),
        versions=versions(),
        cpus=os.cpu_count() or 1,
        gpus=listed_gpus(),
        free=shutil.disk_usage(tempfile.gettempdir()).free,
        time=time.time(),
        sees=path.exists(),
        left=own.name,
        unwritable=unwritable,
        code=digest(sources.PROJECT) if with_code else "",
        unsafe=unsafe,
    )


def listed_gpus() -> int:
    """GPUs that the driver of this machine lists."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def usable_gpus() -> int:
    """GPUs that torch can use on this machine: Ray hides them from a worker that asked for none, so another process looks."""
    look = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", look]
    told = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT / 2, check=True, env=environment)
    return int(told.stdout.split()[-1])
