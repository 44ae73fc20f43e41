"""Learning curves and measures by layer, read from the committed records of a few trials of each task."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.judging.evidence import Evidence
from harness.judging.report_tasks import cell_trials
from harness.judging.statistics import mean_interval
from harness.recording.results import Results

POINTS = 40
"""Points that a curve is drawn with."""

SECONDS = re.compile(r'"time/train_seconds": ([-+.\deE]+)')
SUMMARIES = frozenset({"mean", "null", "min", "max"})
"""Last parts of a probe's metrics that are no layer."""

Track = dict[float, tuple[float, float]]
"""A metric of one trial: by step, seconds of training and value."""


@dataclass(frozen=True)
class Curve:
    """A metric of one cell over training: mean over its seeds with Student's 95 % interval, nan where a single seed is left."""

    steps: list[float]
    seconds: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: list[int]


def read_tracks(memory: Results, hash: str, wanted: tuple[str, ...]) -> dict[str, Track]:
    """The metrics of a trial whose names begin in one of some ways. Lines without them are not parsed."""
    trial = memory.trial(hash)
    commit = trial.commit()
    found: dict[str, Track] = {}
    marks, seconds = tuple(f'"{name}' for name in wanted), 0.0
    for chunk in commit.chunks if commit else []:
        with trial.chunk(chunk) as lines:
            kept, clock = [], []
            for line in lines:
                if "time/train_seconds" in line:
                    match = SECONDS.search(line)
                    seconds = float(match[1]) if match else 0.0
                if any(mark in line for mark in marks):
                    kept.append(line)
                    clock.append(seconds)
            records = json.loads("[" + ",\n".join(kept) + "]")  # at once: by the line it takes a quarter longer
            for record, until in zip(records, clock, strict=True):
                _enter(found, record, until, wanted)
    return found


def _enter(found: dict[str, Track], record: dict[str, Any], seconds: float, wanted: tuple[str, ...]) -> None:
    step = record["step"]
    for name, value in record.get("metrics", {}).items():
        if name in found:
            found[name][step] = (seconds, value)
        elif name.startswith(wanted):
            found[name] = {step: (seconds, value)}


def cell_tracks(
    memory: Results, evidence: Evidence, task: str, cell: str, wanted: tuple[str, ...]
) -> list[dict[str, Track]]:
    """The same for every trial of a cell that has started."""
    return [read_tracks(memory, trial.hash, wanted) for trial in cell_trials(evidence, task, cell)]


def seed_tracks(
    memory: Results, evidence: Evidence, task: str, cell: str, wanted: tuple[str, ...]
) -> list[dict[str, Track]]:
    """The same for every seed: the mean over its trials, where several streams vary."""
    seeds = evidence.units_of(task, cell)
    return [_mean([read_tracks(memory, trial.hash, wanted) for trial in trials]) for trials in seeds]


def _mean(tracks: Sequence[dict[str, Track]]) -> dict[str, Track]:
    """The metrics and the steps that all of some trials have."""
    if len(tracks) == 1:
        return tracks[0]
    found: dict[str, Track] = {}
    for name in tracks[0]:
        each = [track.get(name, {}) for track in tracks]
        steps = [step for step in each[0] if all(step in track for track in each)]
        means = {step: np.mean([track[step] for track in each], axis=0).tolist() for step in steps}
        found[name] = {step: (seconds, value) for step, (seconds, value) in means.items()}
    return found


def curve(tracks: Sequence[Track]) -> Curve | None:
    """The mean over seeds at the steps that at least half of them reached; None if there is no such step."""
    started = [track for track in tracks if track]
    by_step: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for track in started:
        for step, pair in track.items():
            by_step[step].append(pair)
    steps = sorted(step for step, pairs in by_step.items() if 2 * len(pairs) >= len(started))
    if not steps:
        return None
    kept = [steps[index] for index in thinned(len(steps))]
    found = Curve(kept, [], [], [], [], [])
    for step in kept:
        seconds, values = zip(*by_step[step], strict=True)
        mean, half = mean_interval(values)
        found.seconds.append(float(np.mean(seconds)))
        found.mean.append(mean)
        found.low.append(math.nan if half is None else mean - half)
        found.high.append(math.nan if half is None else mean + half)
        found.seeds.append(len(values))
    return found


def thinned(count: int, most: int = POINTS) -> list[int]:
    """Evenly spaced places, the first and the last among them.

    >>> thinned(5, 3), thinned(2, 3)
    ([0, 2, 4], [0, 1])
    """
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def layered(names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Metrics of probes: those with a value for each of several layers, by measure, and those with one number.

    Values of layers stand beside their summary, as `probe/oui/fc1` beside `probe/oui/mean`, or under a measure of a probe, as
    `probe/activation_flips/gate/fc1`; `probe/activation_flips/rate` is a number of its own.

    >>> layered(["probe/oui/fc1", "probe/oui/fc2", "probe/oui/mean", "probe/loss"])
    ({'probe/oui': ['probe/oui/fc1', 'probe/oui/fc2']}, ['probe/oui/mean', 'probe/loss'])
    >>> layered(["probe/flips/rate", "probe/flips/norm", "probe/flips/gate/fc1", "probe/flips/gate/fc2"])
    ({'probe/flips/gate': ['probe/flips/gate/fc1', 'probe/flips/gate/fc2']}, ['probe/flips/rate', 'probe/flips/norm'])
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        measure, _, layer = name.rpartition("/")
        if layer not in SUMMARIES and measure != "probe":
            groups[measure].append(name)
    summed = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in SUMMARIES}
    maps = {m: layers for m, layers in groups.items() if len(layers) > 1 and (m in summed or m.count("/") > 1)}
    drawn = {name for layers in maps.values() for name in layers}
    return maps, [name for name in names if name not in drawn and not name.endswith("/null")]
