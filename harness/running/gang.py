"""The processes of a unit: its own warm process, and for a data-parallel trial those of the other ranks."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util import get_current_placement_group, get_node_ip_address
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from harness.resources import Resources, Seat
from harness.running.child import FOLLOWED
from harness.running.children import WarmHandle
from harness.running.units import UnitTrial

FOLLOW = 20.0
"""Seconds that the other ranks have to end after the first one: they notice at their next exchange."""

Make = Callable[[], WarmHandle]


class RankLost(RuntimeError):
    """A rank has ended and the first one has not noticed: infrastructure trouble, so the unit is tried again."""


class Rank:
    """The actor of a rank beside the first, in a bundle of its own."""

    def __init__(self, make: Make) -> None:
        self._warm = make()

    def node(self) -> str:
        """The node that it is on."""
        return ray.get_runtime_context().get_node_id()

    def run(self, trial: UnitTrial, seat: Seat) -> str:
        """Takes part in a trial to its end, and tells how it ended."""
        self._warm.start([trial], seat)
        while True:
            for event in self._warm.events(1.0):
                if event["event"] == "ended":
                    return str(event["reason"] or event["status"])


class Gang:
    """Runs trials one after another, each on as many ranks as it asks for.

    The first rank is this process's own and writes the records. The others are actors in the further bundles of the unit's
    placement group; they end with this process, and nothing that they do is told but through the first.

    Args:
        make: starts a warm process.
        resources: of the units that it will run.
    """

    def __init__(self, make: Make, resources: Resources) -> None:
        self.resources = resources
        self._make = make
        self._warm = make()
        self._ranks: list[Any] = []
        self._following: list[Any] = []
        self._alone_since: float | None = None

    def start(self, trials: Sequence[UnitTrial]) -> None:
        """Hands over a trial, or the seeds of a stack."""
        if self.resources.ranks == 1:
            return self._warm.start(trials)
        (trial,) = trials
        self._alone_since = None
        self._await_followers()
        if not self._ranks:
            self._ranks = [self._rank(index) for index in range(1, self.resources.ranks)]
        here = ray.get_runtime_context().get_node_id()
        alone = all(node == here for node in ray.get([rank.node.remote() for rank in self._ranks]))
        address = _address("127.0.0.1" if alone else get_node_ip_address())
        seats = [
            Seat(index, self.resources.ranks, address, self.resources.device) for index in range(1 + len(self._ranks))
        ]
        self._warm.start(trials, seats[0])
        self._following = [rank.run.remote(trial, seat) for rank, seat in zip(self._ranks, seats[1:], strict=True)]

    def events(self, timeout: float) -> list[dict[str, Any]]:
        """As `WarmHandle.events`.

        Raises:
            RankLost: if another rank has ended and the first one goes on, or waits for it.
        """
        found = self._warm.events(timeout)
        if self._following and not any(event["event"] == "ended" for event in found):
            self._look_after_ranks()
        return found

    def _look_after_ranks(self) -> None:
        ended, _ = ray.wait(self._following, num_returns=len(self._following), timeout=0)
        lost = [told for told in map(_told, ended) if told != FOLLOWED]
        if not lost:
            return
        self._alone_since = self._alone_since or time.monotonic()
        if time.monotonic() - self._alone_since > FOLLOW:
            raise RankLost(f"a rank has ended by itself: {lost[0]}")

    def stop(self) -> None:
        """Lets a running trial commit and stop, and ends all processes."""
        self._warm.stop()
        self._dismiss()

    def _rank(self, index: int) -> Any:
        asked, group = self.resources.bundle, get_current_placement_group()
        assert group is not None  # Tune starts every trial in one
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        cpus, gpus, memory = (asked.pop(name, 0.0) for name in ("CPU", "GPU", "memory"))
        actor = ray.remote(Rank).options(
            num_cpus=cpus, num_gpus=gpus, memory=memory or None, resources=asked, scheduling_strategy=place
        )
        return actor.remote(self._make)

    def _await_followers(self) -> None:
        """Waits for the other ranks to end the trial before; those that do not are replaced."""
        if self._following:
            _, late = ray.wait(self._following, num_returns=len(self._following), timeout=FOLLOW)
            self._following = []
            if late:
                self._dismiss()

    def _dismiss(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks, self._following = [], []


def _told(ended: Any) -> str:
    """How a rank ended."""
    try:
        return str(ray.get(ended))
    except ray.exceptions.RayError as error:
        return f"its actor is gone ({type(error).__name__})"


def _address(host: str) -> str:
    """A free port of this machine. Where another process takes it meanwhile, the unit is tried again."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return f"{host}:{listener.getsockname()[1]}"
