"""What fits on the nodes of a cluster, and when waiting for a node is in vain."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ByteSize, TypeAdapter

from harness.resources import Resources

LOOK_EVERY = 10.0
"""Seconds between two looks at what runs."""

PATIENCE = 1800.0
"""Seconds that nothing has run and some unit fits on no node, after which a grid ends: a lost one may be replaced."""


def shortage(asked: Resources, nodes: Sequence[dict[str, Any]]) -> str:
    """What the nodes lack for a unit, were they empty; nothing if they could hold it.

    Args:
        asked: by the unit.
        nodes: the resources of each.
    """
    for name, amount in asked.bundle.items():
        largest = max((float(node.get(name, 0)) for node in nodes), default=0.0)
        if amount > largest:
            label = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}.get(name, f"custom.{name}")
            return f"resources.{label}: found {amount:g}, allowed: at most {largest:g}, the largest node's"
    room = asked.room(nodes)
    if asked.ranks > room:
        return f"resources.ranks: found {asked.ranks}, allowed: at most {room:g} of this size on these nodes"
    return ""


def node_type(text: str) -> dict[str, float]:
    """What a node of a kind has, in Ray's names.

    >>> node_type("CPU=8,GPU=1,memory=2GiB")
    {'CPU': 8.0, 'GPU': 1.0, 'memory': 2147483648.0}

    Raises:
        ValueError: if it is not written as above.
    """
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        found = {name.strip(): _amount(name.strip(), value) for name, value in pairs}
        if "" not in found and len(found) == len(pairs) and all(0 <= value < math.inf for value in found.values()):
            return found
    except ValueError:
        pass
    raise ValueError(f"found {text!r}, allowed: what a node of that kind has, such as CPU=8,GPU=1,memory=32GiB")


def _amount(name: str, value: str) -> float:
    return float(TypeAdapter(ByteSize).validate_python(value.strip()) if name == "memory" else value)


def alive(nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The resources of each node that is there, of nodes as `ray.nodes()` gives them."""
    return [node["Resources"] for node in nodes if node.get("Alive", True)]


class Stall:
    """Notices that nothing runs, and that what waits fits on no node, for longer than a node takes to come.

    Where the nodes could hold it, others have what it waits for, and that may take as long as it does.

    Args:
        waiting: what units that are not settled ask for, with their cells.
        nodes: the resources of each node.
    """

    def __init__(
        self, waiting: Callable[[], dict[str, Resources]], nodes: Callable[[], Sequence[dict[str, Any]]]
    ) -> None:
        self._waiting, self._nodes = waiting, nodes
        self._looked = self._since = time.monotonic()

    def look(self, running: Callable[[], bool]) -> str:
        """Why waiting is in vain; empty if it is not."""
        now = time.monotonic()
        if now - self._looked < min(LOOK_EVERY, PATIENCE):
            return ""
        self._looked = now
        if running():
            self._since = now
            return ""
        nodes = self._nodes()
        short = {cell: lack for cell, asked in self._waiting().items() if (lack := shortage(asked, nodes))}
        if not short:
            self._since = now
        if now - self._since <= PATIENCE:
            return ""
        told = "; ".join(f"{cell} ({lack})" for cell, lack in list(short.items())[:3])
        more = f" and {len(short) - 3} cells more" if len(short) > 3 else ""
        return f"nothing has run for {(now - self._since) / 60:.0f} min, and no node has come for {told}{more}"
