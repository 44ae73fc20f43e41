"""Units: what one Tune trial carries, usually one trial of the grid."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from harness.resources import Resources

WIDTH = 10
"""Seeds of a stack at most: from 8 to 12 the speed per core of PPO gains only 6 %, and large batches leave the cache."""


APART = "apart"
"""What is told of a trial whose stack ended without its result, by whose fault is unknown: it goes on by itself."""


@dataclass(frozen=True)
class UnitTrial:
    """One trial of a unit: its content and the values that it takes from other trials."""

    hash: str
    spec_json: str
    code: str
    values: dict[str, Any] = field(default_factory=dict)
    keep: list[str] = field(default_factory=list)
    """Checkpoints to keep for other trials."""
    screen: str = ""
    """The early-stopping rule with its thresholds, as text."""
    since: float = math.inf
    """When the run looked at what is there: a result of the same code that has come since, of another run or of an earlier
    try, is taken as it is."""


@dataclass(frozen=True)
class Unit:
    """Trials that are handed over together. Each has its own process, unless they are stacked: one may fail without the others."""

    trials: list[UnitTrial]
    resources: Resources
    cell: str = ""
    """Trials of one cell are expected to take as long, and short ones are handed over together."""
    stacked: bool = False
    """Whether its trials are seeds of one cell that run as one, in one process."""

    @property
    def name(self) -> str:
        """The hash of its first trial."""
        return self.trials[0].hash

    def to_json(self) -> str:
        """The unit as text, for a worker."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Unit:
        """The reverse of `to_json`."""
        content = json.loads(text)
        trials = [UnitTrial(**trial) for trial in content["trials"]]
        return Unit(trials, Resources(**content["resources"]), content["cell"], content["stacked"])

    @property
    def processes(self) -> list[list[UnitTrial]]:
        """The trials of each process."""
        return [self.trials] if self.stacked else [[trial] for trial in self.trials]


MEMORY_STEP = 256 * 2**20
"""Bytes to which an expected memory is rounded up, so that cells which take about as much share workers."""


def packed(unit: Unit, peak: int, nodes: Sequence[Mapping[str, float]]) -> Unit:
    """The unit, asking for the memory that trials of its cell took before, where a node full of such trials would not hold them.

    Args:
        unit: whose grid may limit its memory: then that is what it asks for.
        peak: bytes that a process of the cell took; 0 if nothing is known.
        nodes: the resources of each node, by Ray's names.
    """
    asked = unit.resources
    largest = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    expected = min(math.ceil(peak / MEMORY_STEP) * MEMORY_STEP, int(largest))
    crowded = any(expected * (node.get("CPU", 0) // asked.cpus) > node.get("memory", 0) for node in nodes)
    if asked.memory or not expected or not crowded:
        return unit
    return replace(unit, resources=replace(asked, expected=expected))


def stack(units: Sequence[Unit], slots: int) -> list[Unit]:
    """Units of one trial each, those that run stacked put together: as few units as keep every slot busy.

    What a seed comes to does not depend on the width of its stack.
    """
    singles = [unit for unit in units if not unit.stacked]
    cells: dict[tuple[str, Resources], list[Unit]] = {}
    for unit in units:
        if unit.stacked:
            cells.setdefault((unit.cell, unit.resources), []).append(unit)
    most = max(1, min(WIDTH, math.ceil((len(units) - len(singles)) / slots)))
    for (cell, resources), seeds in cells.items():
        count = math.ceil(len(seeds) / most)
        for part in (seeds[number::count] for number in range(count)):
            singles.append(Unit([trial for unit in part for trial in unit.trials], resources, cell, True))
    return singles
