"""What `harness doctor` looks at: everything that a grid will need, tried for real, and what to do about what is wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from harness.recording.environment import PACKAGES, version
from harness.recording.records import RecordsError, Results, write_atomically
from harness.registry import Registry
from harness.running.scheduling import Infrastructure, cluster

FREE = 5 << 30
"""Bytes that should be free where results are written."""

SKEW = 2.0
"""Seconds that two machines' clocks may differ by."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warning", "wrong"]
    detail: str
    advice: str = ""


def examine(results: Results, registry: Registry, tracking: str | None, address: str | None) -> Iterator[Finding]:
    """Looks at everything, one thing after another."""
    yield from _versions()
    yield _registered(registry)
    yield from _storage(results)
    yield _gpus()
    yield _tracking(results, tracking)
    yield from _cluster(results, address)


def _versions() -> Iterator[Finding]:
    """Every package within the range that the project asks for."""
    asked = {r.name.lower(): r for r in map(Requirement, metadata.requires("training-harness") or []) if not r.marker}
    wrong = []
    for package in PACKAGES:
        found, requirement = version(package), asked.get(package.lower())
        if found is None:
            wrong.append(f"{package} is missing")
        elif requirement and not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{package} {found}, allowed: {requirement.specifier}")
    told = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "mlflow"))
    if wrong:
        yield Finding("versions", "wrong", "; ".join(wrong), "make install, or install what requirements.lock names")
    else:
        yield Finding("versions", "ok", told)


def _registered(registry: Registry) -> Finding:
    """The registry refuses modules that are shadowed; what does not load is named."""
    if registry.broken:
        told = "; ".join(f"{origin}: {error}" for origin, error in registry.broken.items())
        return Finding(
            "plugins", "warning", told, "mend or leave out what does not load: its names are unknown to grids"
        )
    counts = [f"{len(registry.items(kind))} {kind}s" for kind in ("task", "method", "probe")]
    return Finding("plugins", "ok", ", ".join(counts))


def _storage(results: Results) -> Iterator[Finding]:
    marker = results.folder / f".doctor-{uuid.uuid4().hex}"
    try:
        write_atomically(marker, "here")
        marker.unlink()
    except RecordsError as error:
        yield Finding("results", "wrong", str(error), "give another folder with --results, or mend its permissions")
        return
    free = shutil.disk_usage(results.folder).free
    told = f"{results.folder}, {free / 2**30:.1f} GiB free"
    advice = "harness gc shows what can go" if free < FREE else ""
    yield Finding("results", "warning" if free < FREE else "ok", told, advice)


def _gpus() -> Finding:
    """GPUs that the machine has against those that torch sees."""
    import torch

    seen = torch.cuda.device_count()
    listed = 0
    if program := shutil.which("nvidia-smi"):
        answer = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False)
        listed = sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
    if listed > seen:
        advice = "CUDA_VISIBLE_DEVICES hides some, or the driver is older than this torch needs"
        return Finding("gpus", "warning", f"the machine has {listed}, torch sees {seen}", advice)
    return Finding("gpus", "ok", f"torch sees {seen}")


def _tracking(results: Results, tracking: str | None) -> Finding:
    """Opens the store as the writer does; a database of its own is not made for this."""
    from harness.recording.store import SCHEMES, TrackingError, reachable

    if tracking is None:
        return Finding("tracking", "ok", f"SQLite in {results.folder}")
    try:
        reachable(tracking)
    except TrackingError as error:
        schemes = ", ".join(SCHEMES)
        return Finding("tracking", "wrong", str(error), f"check the address ({schemes}) and that the server runs")
    return Finding("tracking", "ok", f"{tracking} answers")


def _cluster(results: Results, address: str | None) -> Iterator[Finding]:
    """Starts Ray here, or joins the cluster, and asks every node."""
    try:
        with cluster(address) as ray:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            totals = ray.cluster_resources()
            told = f"{len(nodes)} nodes, {totals.get('CPU', 0):g} CPUs, {totals.get('GPU', 0):g} GPUs, token mode"
            yield Finding("ray", "ok", told)
            for node in nodes:
                yield _node(ray, node, results)
    except Infrastructure as error:
        advice = "is it running, and is the token in RAY_AUTH_TOKEN or ~/.ray/auth_token the cluster's?"
        yield Finding("ray", "wrong", str(error), advice)


def _node(ray: Any, node: dict[str, Any], results: Results) -> Finding:
    """A worker there: its versions, its clock, and whether it sees what is written here."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name = f"node {node['NodeManagerHostname']}"
    marker = results.folder / f".doctor-{uuid.uuid4().hex}"
    try:
        write_atomically(marker, "here")
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ask = ray.remote(num_cpus=0, scheduling_strategy=strategy)(_answer)
        before = time.time()
        answer = ray.get(ask.remote(str(marker), PACKAGES), timeout=120)
        after = time.time()
    except RecordsError:
        return Finding(name, "warning", "whether it sees the results folder cannot be tried", "mend that folder first")
    except Exception as error:  # whatever keeps a worker from answering is the finding
        return Finding(name, "wrong", f"{type(error).__name__}: {error}".split("\n")[0], "look at this node's Ray logs")
    finally:
        with contextlib.suppress(OSError):
            marker.unlink()
    own = {package: version(package) for package in PACKAGES}
    differing = [
        f"{p} {answer['versions'][p]} there, {own[p]} here" for p in PACKAGES if answer["versions"][p] != own[p]
    ]
    if differing:
        return Finding(name, "wrong", "; ".join(differing), "install the same lock on every node")
    if not answer["sees"]:
        return Finding(name, "wrong", f"does not see {results.folder}", "give --results a folder that all nodes share")
    skew = max(before - answer["time"], answer["time"] - after, 0.0)
    if skew > SKEW:
        return Finding(name, "warning", f"its clock is off by {skew:.1f} s", "let both machines follow a time server")
    return Finding(name, "ok", f"same versions, sees the results folder, {answer['cpus']} CPUs")


def _answer(marker: str, packages: tuple[str, ...]) -> dict[str, Any]:
    from importlib import metadata

    def found(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    versions = {package: found(package) for package in packages}
    return {"sees": Path(marker).exists(), "time": time.time(), "versions": versions, "cpus": os.cpu_count()}
