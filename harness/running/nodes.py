"""Asks every node of a cluster what a grid needs to know of it."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import sources
from harness.recording.environment import PACKAGES
from harness.recording.records import write_atomically

TIMEOUT = 120.0
"""Seconds that a node is given to answer: it may have to unpack what was sent first."""


@dataclass(frozen=True)
class Answer:
    """What a worker on a node finds there."""

    host: str
    versions: dict[str, str]
    cpus: int
    time: float
    sees: bool
    """Whether it sees the marker that was written where it was asked from."""
    left: str
    """The name of the file that it left beside that marker."""
    unwritable: str
    """Why it could leave none; empty if it could."""
    code: str
    """The digest of the package that it runs, if it was asked for."""


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
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    remote = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(answer)
    given: Answer = ray.get(remote.remote(str(marked), with_code), timeout=TIMEOUT)
    return given


def answer(marked: str, with_code: bool) -> Answer:
    """What this process finds on its node."""
    from harness.running.staging import digest

    path, unwritable = Path(marked), ""
    own = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        own.write_text("there")
    except OSError as error:
        unwritable = str(error)
    code = digest(sources.PROJECT) if with_code else ""
    cpus = os.cpu_count() or 1
    return Answer(socket.gethostname(), versions(), cpus, time.time(), path.exists(), own.name, unwritable, code)
