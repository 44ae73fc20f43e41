"""Early-stopping rules as pure functions of one trial's own records: what they read, what they allow, what they decide.

A rule accepts a run if each of its quantities, taken at a share of the training, lies between two bounds:

| rule | quantities |
|---|---|
| `oui` | `critic` and `actor`: their OUI on the task's probe batch |
| `early_return` | `return`: mean return of the episodes of the last fifth of the steps so far |
| `clip_fraction`, `kl`, `flips` | `clip_fraction`, `approx_kl`, `flip_rate`: means over the records so far |
| `lr` | `lr`: the learning rate itself, the control that uses no signal |

`early_return + oui` accepts what both accept. Source: arXiv 2603.09950 (abstract); its thresholds are not public.

`asha` and `median` compare a trial with its neighbours; they are Ray Tune's own (`harness.running.neighbours`), and a trial
only learns what they said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from harness.options import nearest

Bounds = dict[str, tuple[float, float]]
"""Lowest and highest allowed value by quantity, both included."""


@dataclass(frozen=True)
class Quantity:
    """A number that a rule looks at: a recorded metric, its last value or the mean of its values so far."""

    metric: str
    over: Literal["last", "mean"] = "last"
    side: Literal["high", "band"] = "band"
    """How thresholds are fitted: at least so much, or between two values."""
    needs: str = "policy"
    """What a task must offer to record it; empty if nothing."""


QUANTITIES = {
    "critic": Quantity("train/oui_critic"),
    "actor": Quantity("train/oui_actor", side="high"),
    "return": Quantity("train/return_last_fifth", side="high"),
    "clip_fraction": Quantity("train/clip_fraction", "mean"),
    "approx_kl": Quantity("train/approx_kl", "mean"),
    "flip_rate": Quantity("train/flip_rate", "mean"),
    "lr": Quantity("lr", needs=""),
}

RULES: dict[str, tuple[str, ...]] = {
    "oui": ("critic", "actor"),
    "early_return": ("return",),
    "clip_fraction": ("clip_fraction",),
    "kl": ("approx_kl",),
    "flips": ("flip_rate",),
    "lr": ("lr",),
}


NEIGHBOURS = {"asha": "reduction", "median": "samples"}
"""Rules that compare a trial with others of the grid, and the one number that each takes."""


def quantities(rule: str) -> tuple[str, ...]:
    """What a rule, or a conjunction of rules, looks at.

    Raises:
        ValueError: if a rule is unknown.

    >>> quantities("early_return + oui")
    ('return', 'critic', 'actor')
    """
    found: list[str] = []
    for name in (part.strip() for part in rule.split("+")):
        if name not in RULES:
            raise ValueError(f"rule: found {name!r}, allowed: {', '.join(RULES)}, joined by '+'{nearest(name, RULES)}")
        found += RULES[name]
    return tuple(dict.fromkeys(found))


def read(rule: str, records: Iterable[Mapping[str, Any]], until: int, lr: float) -> dict[str, float]:
    """The rule's quantities from the records up to a step; what was not recorded is missing.

    >>> records = [{"step": s, "metrics": {"train/approx_kl": s / 100}} for s in (1, 3, 5)]
    >>> read("kl", records, until=3, lr=0.1)
    {'approx_kl': 0.02}
    """
    seen: dict[str, list[float]] = {}
    for record in records:
        if record["step"] <= until:
            for metric, value in record.get("metrics", {}).items():
                seen.setdefault(metric, []).append(value)
    values = {}
    for name in quantities(rule):
        if found := [lr] if name == "lr" else seen.get(QUANTITIES[name].metric):
            values[name] = math.fsum(found) / len(found) if QUANTITIES[name].over == "mean" else found[-1]
    return values


def decide(bounds: Bounds, values: Mapping[str, float]) -> str:
    """Why a run is not accepted: the first value out of its bounds, and those; empty if it is accepted.

    A value that is missing, or no number, is not accepted.

    >>> decide({"return": (100.0, math.inf)}, {"return": 35.5})
    'return 35.5, allowed: at least 100'
    >>> decide({"critic": (0.25, 0.75)}, {"critic": 0.75})
    ''
    """
    for name, (low, high) in bounds.items():
        value = values.get(name, math.nan)
        if not low <= value <= high:
            found = "none" if math.isnan(value) else f"{value:.6g}"
            return f"{name} {found}, allowed: {_told(low, high)}"
    return ""


def _told(low: float, high: float) -> str:
    if high == math.inf:
        return f"at least {low:.6g}"
    return f"at most {high:.6g}" if low == -math.inf else f"{low:.6g} to {high:.6g}"


@dataclass(frozen=True)
class Screen:
    """A rule with the thresholds of one trial."""

    rule: str
    at: float
    bounds: Bounds
    mark: str = ""
    """What a result that it ends is marked with."""

    @property
    def compares(self) -> bool:
        """Whether the rule looks at other trials."""
        return self.rule in NEIGHBOURS

    def step(self, length: int) -> int:
        """The step of a run at which it decides, or from which on."""
        return max(1, round(self.at * length))

    def due(self, step: int, length: int, evaluate_every: int) -> bool:
        """Whether a run is judged at a step: once, or at every evaluation by a rule that compares."""
        first = self.step(length)
        return step >= first and step % evaluate_every == 0 if self.compares else step == first

    def judge(self, records: Iterable[Mapping[str, Any]], length: int, lr: float) -> str:
        """Why a run is stopped; empty if it goes on."""
        step = self.step(length)
        reason = decide(self.bounds, read(self.rule, records, step, lr))
        return f"{self.rule} at step {step}: {reason}" if reason else ""

    def to_json(self) -> str:
        """As text, for a worker."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Screen:
        """The reverse of `to_json`."""
        content = json.loads(text)
        bounds = {name: (low, high) for name, (low, high) in content.pop("bounds").items()}
        return Screen(bounds=bounds, **content)


@dataclass(frozen=True)
class Screening:
    """What a grid says about screening: thresholds by task, or the grid that they are fitted on and the recall aimed at."""

    rule: str
    at: float
    thresholds: dict[str, Bounds] = field(default_factory=dict)
    """By a glob over tasks: the first that matches."""
    source: str = ""
    recall: float = 0.8
    options: dict[str, float] = field(default_factory=dict)
    """Of a rule that compares trials."""

    @property
    def mark(self) -> str:
        """Tells the results of one screening from those of another: what the grid says, not what is fitted for it."""
        content = asdict(self) | ({"thresholds": {}} if self.source else {})
        return json.dumps(
            {name: value for name, value in content.items() if name != "options" or value}, sort_keys=True
        )

    def screen(self, task: str) -> Screen | None:
        """The rule with the thresholds of a task; none if there are none for it."""
        if self.rule in NEIGHBOURS:
            return Screen(self.rule, self.at, {}, self.mark)
        for glob, bounds in self.thresholds.items():
            if fnmatchcase(task, glob):
                return Screen(self.rule, self.at, bounds, self.mark)
        return None

    @staticmethod
    def from_content(content: dict[str, Any] | None) -> Screening | None:
        """The reverse of `dataclasses.asdict`, through JSON."""
        if content is None:
            return None
        thresholds = {
            glob: {name: (low, high) for name, (low, high) in bounds.items()}
            for glob, bounds in content["thresholds"].items()
        }
        return Screening(**content | {"thresholds": thresholds})
