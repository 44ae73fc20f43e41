"""What `harness doctor` looks at: everything that a grid will need, tried for real, and what to do about what is wrong."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from harness.recording.environment import PACKAGES, version
from harness.recording.grids import without_password
from harness.recording.records import RecordsError
from harness.recording.results import Results
from harness.registry import Registry, RegistryError, Shadowed
from harness.running.nodes import Answer, ask, differences, listed_gpus, marker, on, usable_gpus, versions
from harness.running.scheduling import Infrastructure, cluster

FREE = 5 << 30
"""Bytes that should be free where results are written, and on the disk of every node."""

SKEW = 2.0
"""Seconds that two machines' clocks may differ by."""


State = Literal["ok", "warning", "wrong"]

Trouble = tuple[State, str, str]
"""How bad it is, what was found and what to do."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    detail: str
    advice: str = ""


def examine(results: Results, plugins: Sequence[Path], tracking: str | None, address: str | None) -> Iterator[Finding]:
    """Looks at everything, one thing after another."""
    yield from _versions()
    yield _registered(plugins)
    yield from _storage(results)
    yield _gpus()
    yield _tracking(results, tracking)
    yield _token(address)
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


def _registered(plugins: Sequence[Path]) -> Finding:
    """The registry refuses what is shadowed or registered twice; what does not load is named."""
    try:
        registry = Registry(plugins)
    except Shadowed as error:
        advice = "move or rename that file, or take its folder out of PYTHONPATH"
        return Finding("plugins", "wrong", str(error), advice)
    except RegistryError as error:
        return Finding("plugins", "wrong", str(error), "rename one of the two, or leave its plugin out")
    if registry.broken:
        told = "; ".join(f"{origin}: {error}" for origin, error in registry.broken.items())
        return Finding(
            "plugins", "warning", told, "mend or leave out what does not load: its names are unknown to grids"
        )
    counts = [f"{len(registry.items(kind))} {kind}s" for kind in ("task", "method", "probe")]
    return Finding("plugins", "ok", ", ".join(counts))


def _storage(results: Results) -> Iterator[Finding]:
    try:
        with marker(results.folder):
            pass
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

    seen, listed = torch.cuda.device_count(), listed_gpus()
    if listed > seen:
        advice = "CUDA_VISIBLE_DEVICES hides some, or the driver is older than this torch needs"
        return Finding("gpus", "warning", f"the machine has {listed}, torch sees {seen}", advice)
    return Finding("gpus", "ok", f"torch sees {seen}")


def _tracking(results: Results, tracking: str | None) -> Finding:
    """Opens the store as the writer does; a database of its own is not left behind."""
    from harness.recording.store import SCHEMES, TrackingError, reachable, writable

    if tracking is None:
        database = results.folder / "mlflow.db"
        try:
            writable(database)
        except (TrackingError, OSError) as error:
            advice = (
                "mend the folder's permissions, give --tracking a server where SQLite cannot lock its file, or, if the "
            )
            advice += "file is broken, delete it: harness sync builds it anew"
            return Finding("tracking", "wrong", f"SQLite in {results.folder}: {error}", advice)
        return Finding("tracking", "ok", f"SQLite in {results.folder} can be written")
    try:
        reachable(tracking)
    except TrackingError as error:
        schemes = ", ".join(SCHEMES)
        return Finding("tracking", "wrong", str(error), f"check the address ({schemes}) and that the server runs")
    return Finding("tracking", "ok", f"{without_password(tracking)} answers")


def _token(address: str | None) -> Finding:
    """Where the cluster's token comes from, and that a file of it is its owner's alone."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if file.is_file() and (mode := file.stat().st_mode & 0o777) & 0o077:
        return Finding("token", "warning", f"{file} has mode {mode:o}: others can use it", f"chmod 600 {file}")
    if address is None:
        return Finding("token", "ok", "a local cluster makes its own")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("token", "ok", "from RAY_AUTH_TOKEN")
    if not file.is_file():
        return Finding("token", "wrong", "none is given", f"set RAY_AUTH_TOKEN, or put the cluster's into {file}")
    return Finding("token", "ok", f"from {file}")


def _cluster(results: Results, address: str | None) -> Iterator[Finding]:
    """Starts Ray here, or joins the cluster, and asks every node."""
    try:
        with cluster(address) as ray:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            totals = ray.cluster_resources()
            told = f"{len(nodes)} nodes, {totals.get('CPU', 0):g} CPUs, {totals.get('GPU', 0):g} GPUs, token mode"
            yield Finding("ray", "ok", told)
            for node in nodes:
                yield from _node(ray, node, results)
    except Infrastructure as error:
        advice = "is it running, and is the token in RAY_AUTH_TOKEN or ~/.ray/auth_token the cluster's?"
        yield Finding("ray", "wrong", str(error), advice)


def _node(ray: Any, node: dict[str, Any], results: Results) -> Iterator[Finding]:
    """Asks a worker there."""
    name = f"node {node['NodeManagerHostname']}"
    try:
        with marker(results.folder) as marked:
            before = time.time()
            answer = ask(ray, node, marked)
            skew = max(before - answer.time, answer.time - time.time(), 0.0)
            arrived = (results.folder / answer.left).exists()
        usable = on(ray, node, usable_gpus) if answer.gpus else 0
    except RecordsError:
        yield Finding(name, "warning", "whether it sees the results folder cannot be tried", "mend that folder first")
        return
    except Exception as error:  # whatever keeps a worker from answering is the finding
        yield Finding(name, "wrong", f"{type(error).__name__}: {error}".split("\n")[0], "look at this node's Ray logs")
        return
    given = int(node["Resources"].get("GPU", 0))
    troubles = [*_lacks(answer, results, arrived), *_gpus_there(answer.gpus, usable, given), *_small(answer, skew)]
    for state, detail, advice in troubles:
        yield Finding(name, state, detail, advice)
    if not troubles:
        told = f"same versions, writes to the results folder, {answer.cpus} CPUs, {usable} GPUs"
        yield Finding(name, "ok", f"{told}, {answer.free / 2**30:.1f} GiB free")


def _lacks(answer: Answer, results: Results, arrived: bool) -> Iterator[Trouble]:
    """What keeps trials from running on a node, or their records from being read here."""
    if told := differences(answer.versions, versions()):
        yield "wrong", "; ".join(told), "install the same lock on every node"
    if not answer.sees:
        yield "wrong", f"does not see {results.folder}", "give --results a folder that all nodes share"
    elif answer.unwritable or not arrived:
        why = answer.unwritable or "what it writes does not arrive here"
        yield "wrong", f"cannot write to {results.folder} ({why})", "mount it there for writing, for the same user"
    if answer.unsafe:
        yield "wrong", answer.unsafe, "trials get their processes through it"


def _gpus_there(listed: int, usable: int, given: int) -> Iterator[Trouble]:
    """A node's GPUs: those that its driver lists, that torch can use, and that Ray gives to trials."""
    if usable < listed:
        advice = "its driver is older than this torch needs, or that torch was built without CUDA"
        yield "warning", f"its driver lists {listed} GPUs, torch can use {usable}", advice
    if given > listed:
        yield "warning", f"Ray gives trials {given} GPUs, its driver lists {listed}", "start its Ray without --num-gpus"
    if given < listed:
        advice = "CUDA_VISIBLE_DEVICES or --num-gpus hid some when its Ray was started"
        yield "warning", f"its driver lists {listed} GPUs, Ray gives trials {given}", advice


def _small(answer: Answer, skew: float) -> Iterator[Trouble]:
    if skew > SKEW:
        yield "warning", f"its clock is off by {skew:.1f} s", "let both machines follow a time server"
    if answer.free < FREE:
        told = f"{answer.free / 2**30:.1f} GiB free where it keeps temporary files"
        yield "warning", told, "make room there: Ray gives a node with a full disk no work"
