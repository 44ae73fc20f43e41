"""What a submitted job does first, on the head: everything is checked where it will run, and then `harness run` takes over.

Ray starts it with `python -m harness.running.arrival` in the folder that the package was unpacked into.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from harness import sources
from harness.planning.errors import GridError
from harness.recording.records import RecordsError
from harness.recording.results import Results
from harness.registry import Registry, RegistryError
from harness.running.nodes import Answer, ask, differences, marker, versions
from harness.running.scheduling import Infrastructure, cluster
from harness.running.staging import SUBMITTED, NotStaged, Order, digest, plan_digest


class Refused(ValueError):
    """Something here is not as the order needs it: exit status 2, nothing started."""


def check(order: Order, folder: Path) -> None:
    """Everything that can be known before a trial starts.

    Raises:
        Refused: if the head or a worker is not as the order needs it.
        GridError, RegistryError: if the grid cannot be planned there, or a plugin does not load.
        Infrastructure: if the cluster or the tracking server does not answer.
    """
    if not sources.PROJECT.samefile(folder):
        raise Refused(f"the head runs harness from {sources.PROJECT}, not what was sent")
    if digest(folder) != order.code:
        raise Refused("what the head has unpacked is not what was sent; submit once more")
    if told := differences(versions(), order.versions):
        raise Refused(f"the head has other versions than the client: {'; '.join(told)}")
    _check_plan(order, folder)
    _check_tracking(order.tracking)
    with cluster("auto") as ray:
        check_nodes(ray, order)


def _check_plan(order: Order, folder: Path) -> None:
    from harness.planning.grid import load_grid
    from harness.planning.plan import build_plan

    registry = Registry([folder / plugin for plugin in order.plugins])
    plan = build_plan(load_grid(folder / "grid.yaml", [], registry), registry)
    if plan_digest(plan) != order.plan:
        raise Refused(
            "the head plans other trials than the client: is HARNESS_DATA, or a distribution with plugins, another one?"
        )


def _check_tracking(tracking: str) -> None:
    from harness.recording.store import TrackingError, reachable

    try:
        reachable(tracking)
    except TrackingError as error:
        raise Infrastructure(f"--tracking: the head does not reach {tracking} ({error})") from error


def check_nodes(ray: Any, order: Order) -> None:
    """Every node has the client's versions, runs what was sent, and shares the results folder with the head.

    Raises:
        Refused: names the node and what is wrong there.
        Infrastructure: if a node does not answer.
    """
    try:
        with marker(Path(order.results)) as marked:
            for node in (node for node in ray.nodes() if node["Alive"]):
                host = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                try:
                    answer = ask(ray, node, marked, with_code=True)
                except Exception as error:  # whatever keeps it from answering keeps it from working
                    told = f"{type(error).__name__}: {error}".split("\n")[0]
                    raise Infrastructure(f"{host} does not answer ({told})") from error
                if trouble := _trouble(answer, order, marked):
                    raise Refused(f"{host}: {trouble}")
    except RecordsError as error:
        raise Refused(f"--results: the head cannot write there ({error})") from error


def _trouble(answer: Answer, order: Order, marked: Path) -> str:
    """What is wrong with a node; empty if nothing is."""
    if told := differences(answer.versions, order.versions):
        return f"has other versions than the client: {'; '.join(told)}"
    if answer.code != order.code:
        return "runs other code than what was sent; submit once more"
    if not answer.sees:
        return f"does not see {order.results} as the head does; give --results a folder that all nodes share"
    if answer.unwritable or not (marked.parent / answer.left).exists():
        return f"cannot write to {order.results} where the head reads it ({answer.unwritable or 'nothing arrives'})"
    return answer.unsafe


def _make_results(folder: str) -> None:
    """Makes the results folder.

    Raises:
        Refused: if it cannot be made.
    """
    try:
        Results(folder).folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RecordsError) as error:
        raise Refused(f"--results: the head cannot write there ({error})") from error


def main() -> int:
    """Checks, and becomes `harness run`."""
    folder = Path.cwd()
    try:
        order = Order.read(folder)
        _make_results(order.results)
        check(order, folder)
    except (Refused, NotStaged, RecordsError, GridError, RegistryError) as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
        return 2
    except (Infrastructure, OSError) as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
        return 3
    command = [sys.executable, "-m", "harness.cli", "run", str(folder / "grid.yaml"), "--address", "auto"]
    command += ["--results", order.results, "--tracking", order.tracking, *order.options]
    for plugin in order.plugins:
        command += ["--plugin", str(folder / plugin)]
    sys.stdout.flush()
    os.chdir(folder)
    os.execve(command[0], command, os.environ | {SUBMITTED: "1"})


if __name__ == "__main__":
    sys.exit(main())
