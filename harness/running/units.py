"""Units: what one Tune trial carries, usually one trial of the grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.resources import Resources


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


@dataclass(frozen=True)
class Unit:
    """Trials that are handed over together. Each has its own process, so one may fail without the others."""

    trials: list[UnitTrial]
    resources: Resources
    cell: str = ""
    """Trials of one cell are expected to take as long, and short ones are handed over together."""

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
        return Unit(trials, Resources(**content["resources"]), content["cell"])

    @staticmethod
    def of(units: Sequence[Unit]) -> Unit:
        """Several units of one cell as one."""
        return Unit([trial for unit in units for trial in unit.trials], units[0].resources, units[0].cell)
