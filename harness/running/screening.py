"""Early-stopping rules as Ray Tune schedulers, for any Tune experiment; this module needs Ray and `harness.screening` alone.

>>> scheduler = ScreeningScheduler("early_return", {"return": 60.0}, at=20_000, time_attr="env_steps")
>>> scheduler.metrics["return"]
'return'

Your trainable reports the quantities under the names in `metrics`, beside `env_steps`, and the scheduler goes into
`tune.TuneConfig(scheduler=scheduler)`. A trial is judged once, at its first report at or after `at`.

A grid of this harness needs none of it: there, each trial judges its own records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from harness.options import nearest
from harness.recording.records import write_atomically
from harness.screening import QUANTITIES, Bounds, decide, quantities


class ScreeningScheduler(FIFOScheduler):
    """Stops a trial whose early values a rule does not accept. It looks at no other trial, so order plays no part.

    Tune does not keep a scheduler's state over `Tuner.restore`; with `state_file` this one does, as JSON.

    Args:
        rule: `oui`, `early_return`, `clip_fraction`, `kl`, `flips`, `lr`, or several joined by `+`.
        thresholds: by quantity, the lowest value allowed, or `(lowest, highest)`; None leaves a side open.
        at: when to judge, in units of `time_attr`.
        time_attr: the reported field that says how far a trial is.
        metrics: the reported field of each quantity, its own name unless given; `lr` is looked up in the configuration.
        state_file: where its state is kept.

    Raises:
        ValueError: for an unknown rule or quantity, or a quantity of the rule without thresholds.
    """

    def __init__(
        self,
        rule: str,
        thresholds: Mapping[str, float | Sequence[float | None]],
        *,
        at: float,
        time_attr: str = "training_iteration",
        metrics: Mapping[str, str] | None = None,
        state_file: str | Path | None = None,
    ) -> None:
        super().__init__()
        names = quantities(rule)
        for given in (thresholds, metrics or {}):
            if unknown := [name for name in given if name not in names]:
                raise ValueError(
                    f"{unknown[0]}: is no quantity of {rule!r}, allowed: {', '.join(names)}{nearest(unknown[0], names)}"
                )
        if missing := [name for name in names if name not in thresholds]:
            raise ValueError(f"thresholds: found nothing for {missing[0]!r}, allowed: LOW or (LOW, HIGH)")
        self.rule, self.at, self.time_attr = rule, at, time_attr
        self.bounds: Bounds = {name: _interval(name, thresholds[name]) for name in names}
        self.metrics = {name: name for name in names} | dict(metrics or {})
        self.reasons: dict[str, str] = {}
        """By trial that was judged: why it was stopped; empty for one that goes on."""
        self._seen: dict[str, dict[str, list[float]]] = {}
        self._file = Path(state_file) if state_file else None
        self._recall()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Tune restores an experiment with the scheduler as it was when the experiment began."""
        self.__dict__.update(state)
        self._recall()

    def _recall(self) -> None:
        if self._file and self._file.exists():
            self.load_state_dict(json.loads(self._file.read_text()))

    def state_dict(self) -> dict[str, Any]:
        """What is known of each trial: plain numbers and texts."""
        return {"reasons": self.reasons, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.reasons = dict(state["reasons"])
        self._seen = {trial: dict(sums) for trial, sums in state["seen"].items()}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        reason = self.judge(trial.trial_id, trial.config, result)
        if self._file:
            write_atomically(self._file, json.dumps(self.state_dict()))
        return TrialScheduler.STOP if reason else TrialScheduler.CONTINUE

    def judge(self, trial: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
        """Takes a report in; returns why the trial is to be stopped, empty unless it is."""
        if trial in self.reasons:
            return self.reasons[trial]
        seen = self._seen.setdefault(trial, {})
        # A report beyond the point of decision is judged by what was there before it, if anything was.
        if result[self.time_attr] <= self.at or not seen:
            for name, metric in self.metrics.items():
                value = config.get(metric) if name == "lr" else result.get(metric)
                if value is not None:
                    total = seen.setdefault(name, [0.0, 0.0, 0.0])
                    seen[name] = [total[0] + float(value), total[1] + 1, float(value)]
        if result[self.time_attr] < self.at:
            return ""
        values = {
            name: total / count if QUANTITIES[name].over == "mean" else last
            for name, (total, count, last) in seen.items()
        }
        self._seen.pop(trial)
        self.reasons[trial] = decide(self.bounds, values)
        return self.reasons[trial]


def _interval(name: str, written: float | Sequence[float | None]) -> tuple[float, float]:
    low, high = (written, None) if isinstance(written, int | float) else written
    bounds = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    if not bounds[0] <= bounds[1]:
        raise ValueError(f"thresholds.{name}: found {written}, allowed: LOW, or (LOW, HIGH)")
    return bounds


class OUIScheduler(ScreeningScheduler):
    """Rule `oui`: the critic's OUI between two values, the actor's at least so much."""

    def __init__(self, critic: Sequence[float | None], actor: float, **settings: Any) -> None:
        super().__init__("oui", {"critic": critic, "actor": actor}, **settings)


class EarlyReturnScheduler(ScreeningScheduler):
    """Rule `early_return`: the early return at least so much."""

    def __init__(self, at_least: float, **settings: Any) -> None:
        super().__init__("early_return", {"return": at_least}, **settings)
