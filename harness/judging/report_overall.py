"""What a report says over all tasks: aggregates, profiles and ranks, failure rates, and times to a target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.claim import ClaimError
from harness.judging import figures
from harness.judging.drawing import SERIES
from harness.judging.evidence import WORST, Evidence
from harness.judging.figures import Figure, Line
from harness.judging.ranks import ranking
from harness.judging.report_data import Findings, ScoreMatrix, Table, number, score_matrix
from harness.judging.statistics import (
    AGGREGATES,
    Estimate,
    aggregates,
    failure_rate,
    has_interval,
    probability_of_improvement,
    profile,
    profile_band,
)
from harness.judging.times import LIMIT, benchmark_score, geometric_speedup, performance_profile, performance_ratios
from harness.planning.plan import Plan, PlannedTrial
from harness.recording.records import Status

CLOCKS = {"steps": "steps_to_target", "seconds": "time/to_target"}
"""The metric that says when a trial reached the target of its recipe, by clock."""


INTERVALS = (
    "The intervals hold the truth in 95 % at least of our simulations of normal, skewed, bimodal and tied scores, where tasks vary "
    "alike; they are Chebyshev's, about twice as wide as normal scores need. No verdict rests on them."
)
NO_INTERVALS = (
    "Aggregates have an interval from five seeds on, on a single task from nine: with fewer, none holds the truth in 95 % whatever "
    "the shape of the scores."
)
"""What the table of aggregates says of their intervals."""


@dataclass(frozen=True)
class Overall:
    """The section over all tasks."""

    tables: list[Table]
    figures: list[Figure]


def overall(findings: Findings) -> Overall:
    """All of it, as far as there are methods and tasks to compare."""
    matrix, plan = score_matrix(findings.evidence), findings.plan
    tables, drawn = [], []
    if len(matrix.scores) > 1 and matrix.tasks and len(next(iter(matrix.scores.values()))):
        tables.append(aggregate_table(matrix))
        drawn.append(profile_figure(colours(plan, list(matrix.scores)), matrix.tasks, matrix.scores))
        if len(matrix.tasks) > 1:
            drawn.append(rank_figure(list(matrix.scores), matrix.tasks, matrix.scores, plan.claims.level))
    tables += failures(findings)
    if reached := times_to_target(findings.evidence):
        tables.append(time_table(reached))
        times = shared_times(reached)
        if len(times) > 1 and len(next(iter(times.values()))["steps"]) > 1:
            tables.append(speed_table(times))
            drawn.append(speed_figure(colours(plan, list(times)), times))
    return Overall(tables, drawn)


def colours(plan: Plan, methods: Sequence[str]) -> dict[str, int]:
    """The colours of methods: the same in all figures of a grid with at most eight."""
    few = len(plan.methods) <= SERIES
    return {name: plan.methods.index(name) if few else index for index, name in enumerate(methods)}


def aggregate_table(matrix: ScoreMatrix) -> Table:
    """Aggregates of the normalised scores with their intervals, and the chance to beat the first method."""
    baseline, *_ = matrix.scores
    rows = []
    for name, scores in matrix.scores.items():
        failed_as_worst = np.where(np.isfinite(scores), scores, 0.0)
        cells = [told(estimate) for estimate in aggregates(failed_as_worst).values()]
        beats = "" if name == baseline else told(probability_of_improvement(scores, matrix.scores[baseline]))
        rows.append([name, *cells, beats])
    note = (
        "Over the tasks that these methods share; 0 is the worst run of a task, 1 its best, a failure counts as 0. "
        f"{INTERVALS if has_interval(*failed_as_worst.shape) else NO_INTERVALS} "
        f"The last column is the chance that a run beats one of the baseline, {baseline}, a tie counting "
        "half, with an interval that holds for any distribution of the scores and is wider than it need be."
    )
    if matrix.missing:
        note += f" Left aside, as trials of theirs are missing: {', '.join(matrix.missing)}."
    if matrix.fewer:
        note += f" Left aside, as they run on fewer tasks: {', '.join(matrix.fewer)}."
    return Table("Aggregates", ["method", *AGGREGATES, "P(better than baseline)"], rows, note)


def told(estimate: Estimate) -> str:
    """A number with its interval, where it has one: `0.512 [0.43, 0.594]`."""
    if estimate.low is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{number(estimate.low, 3)}, {number(estimate.high, 3)}]"


def failures(findings: Findings) -> Iterator[Table]:
    """The failure rate of each method over all its trials that came to an end of their own."""
    rows, total, ended = [], 0, 0
    for method in findings.plan.methods:
        known = [findings.results.get(trial.hash) for trial in findings.plan.reported if trial.method_label == method]
        ends = [result.status for result in known if result and result.status in (*WORST, Status.FINISHED)]
        if ends:
            failed = sum(status in WORST for status in ends)
            rows.append([method, f"{failed}/{len(ends)}", told(failure_rate(failed, len(ends)))])
            total, ended = total + failed, ended + len(ends)
    if rows:
        note = (
            "Trials of any cell that diverged or ran out of memory or time, of those that did so or finished. Clopper and "
            "Pearson's interval, 95 %."
        )
        title = f"Failure rates: {total} of {ended} trials"
        yield Table(title, ["method", "failures", "rate [95 % interval]"], rows, note)


@dataclass(frozen=True)
class Reached:
    """How long one method takes to the target of one task, at its validation-best cell."""

    task: str
    target: float
    method: str
    times: dict[str, float]
    """The median over seeds, by clock; infinite if most of them miss."""
    hits: int
    seeds: int


def times_to_target(evidence: Evidence) -> list[Reached]:
    """The methods on all tasks whose recipes have a target; without those that have trials missing or screened."""
    found: list[Reached] = []
    for task in evidence.tasks("*"):
        for method in evidence.plan.methods:
            with suppress(ClaimError):  # left out of this task
                found += _reached(evidence, task, method)
    return found


def _reached(evidence: Evidence, task: str, method: str) -> Iterator[Reached]:
    cells = evidence.cells(task, method)
    targets = {evidence.trial(task, cell).spec.recipe.get("target") for cell in cells}
    target = targets.pop() if len(targets) == 1 else None
    if target is None:
        return
    by_clock = {}
    for clock, metric in CLOCKS.items():

        def minus_time(trial: PlannedTrial, metric: str = metric) -> float:
            return -evidence.results[trial.hash].metrics.get(metric, math.inf)

        def scores(cell: str, read: Any = minus_time, name: str = metric) -> Any:
            return evidence.collect(task, cell, read, name)

        chosen = evidence.choose(task, cells, scores, *evidence.own(task)).scores
        if not chosen.complete or (chosen.low < chosen.high).any():
            return
        by_clock[clock] = -chosen.low[chosen.judged]
    times = {clock: float(np.median(each)) for clock, each in by_clock.items()}
    hits = np.isfinite(by_clock["steps"])
    yield Reached(task, target, method, times, int(hits.sum()), len(hits))


def time_table(reached: Sequence[Reached]) -> Table:
    """Times to the target by task and method."""
    rows = [[r.task, r.method, number(r.target), f"{r.hits}/{r.seeds}", *map(_time, r.times.values())] for r in reached]
    note = (
        "When validation first reached the target of the recipe: the median over seeds at each method's validation-best cell. "
        "A failure never reaches it; methods with trials missing are left aside."
    )
    return Table("Time to target", ["task", "method", "target", "reached", *CLOCKS], rows, note, names=2)


def _time(time: float) -> str:
    return number(time) if math.isfinite(time) else "never"


def shared_times(reached: Sequence[Reached]) -> dict[str, dict[str, list[float]]]:
    """Of the methods with times on most tasks: by method and clock, the times on the tasks that they share."""
    by_method: dict[str, dict[str, Reached]] = {}
    for one in reached:
        by_method.setdefault(one.method, {})[one.task] = one
    most = max(map(len, by_method.values()))
    kept = {method: found for method, found in by_method.items() if len(found) == most}
    tasks = [task for task in dict.fromkeys(r.task for r in reached) if all(task in found for found in kept.values())]
    return {
        method: {clock: [found[task].times[clock] for task in tasks] for clock in CLOCKS}
        for method, found in kept.items()
    }


def speed_table(times: Mapping[str, dict[str, list[float]]]) -> Table:
    """AlgoPerf's benchmark score of each method, and how many times as fast as the first method it is."""
    baseline, *_ = times
    rows = []
    for method, by_clock in times.items():
        hits = sum(map(math.isfinite, by_clock["steps"]))
        cells = [f"{benchmark_score(ratios_of(times, clock)[method]):.3f}" for clock in CLOCKS]
        for clock, own in by_clock.items():
            theirs = times[baseline][clock]
            known = all(map(math.isfinite, theirs))
            cells.append(f"{geometric_speedup(theirs, own):.3g}" if known else "none")
        rows.append([method, f"{hits}/{len(by_clock['steps'])}", *cells])
    columns = ["method", "targets reached", *(f"score by {clock}" for clock in CLOCKS)]
    columns += [f"speed-up by {clock}" for clock in CLOCKS]
    note = (
        f"AlgoPerf's score (arXiv 2306.07179): the area under the profile of times up to {LIMIT:g} times the fastest, 1 for a "
        f"method that is the fastest everywhere. Speed-up over {baseline}: the geometric mean over tasks; 0 for a missed "
        f"target, none if {baseline} missed one."
    )
    return Table("Speed over tasks", columns, rows, note)


def ratios_of(times: Mapping[str, dict[str, list[float]]], clock: str) -> dict[str, list[float]]:
    """Times over the fastest, task by task."""
    return performance_ratios({method: by_clock[clock] for method, by_clock in times.items()})


def speed_figure(shades: Mapping[str, int], times: Mapping[str, dict[str, list[float]]]) -> Figure:
    """The share of tasks on which each method is within a factor of the fastest, by steps and by seconds."""
    factors = np.linspace(1, LIMIT, 121)
    shares = {
        clock: {name: performance_profile(own, factors).tolist() for name, own in ratios_of(times, clock).items()}
        for clock in CLOCKS
    }
    told = "; ".join(
        f"{name}: {shares['steps'][name][0]:.0%} by steps, {shares['seconds'][name][0]:.0%} by seconds"
        for name in times
    )
    text = (
        "Share of tasks on which a method reaches the target within a factor of the fastest method's time. Share on which it "
        f"is itself the fastest: {told}."
    )
    shown = list(shades)[:SERIES]
    svgs = []
    for clock, own in shares.items():
        lines = [Line(name, factors.tolist(), own[name], colour=shades[name]) for name in shown]
        labels = (f"{clock} to target over the fastest", "share of tasks")
        svgs.append(figures.curves(lines, labels, f"Profile of {clock} to target", text, f"speed{clock[1]}"))
    data = [
        [name, factor, shares["steps"][name][i], shares["seconds"][name][i]]
        for name in times
        for i, factor in enumerate(factors.tolist())
    ]
    columns = ["method", "factor", *(f"share by {clock}" for clock in CLOCKS)]
    return Figure("Time to target over tasks", text, svgs, columns, data, [(shades[name], name) for name in shown])


def profile_figure(shades: Mapping[str, int], tasks: Sequence[str], table: Mapping[str, Any]) -> Figure:
    """The share of runs above each normalised score, with 95 % bands."""
    thresholds = np.linspace(0, 1, 41)
    lines = []
    for name, colour in shades.items():
        y, (low, high) = profile(table[name], thresholds - 1e-12), profile_band(table[name], thresholds - 1e-12)
        lines.append(Line(name, thresholds.tolist(), y.tolist(), low.tolist(), high.tolist(), colour))
    halves = "; ".join(f"{line.label}: {line.y[20]:.0%} [{line.low[20]:.0%}, {line.high[20]:.0%}]" for line in lines)
    text = (
        f"Share of runs that reach a score, on {len(tasks)} tasks; 0 is the worst run of a task and 1 its best, a failure is "
        f"below all. Bands are Clopper and Pearson's, 95 % at each score by itself. Share at 0.5: {halves}."
    )
    data = [[line.label, *values] for line in lines for values in zip(line.x, line.y, line.low, line.high, strict=True)]
    labels = ("normalised score", "share of runs")
    svg = figures.curves(lines[:SERIES], labels, "Performance profile", text, "profile")
    marks = [(line.colour, line.label) for line in lines[:SERIES]]
    return Figure("Performance profile", text, [svg], ["method", "score", "share", "low", "high"], data, marks)


def rank_figure(methods: Sequence[str], tasks: Sequence[str], table: Mapping[str, Any], level: float) -> Figure:
    """Mean ranks over tasks with the groups that a critical difference leaves together."""
    found = ranking({name: table[name].mean(axis=0).tolist() for name in methods}, level)
    listed = ", ".join(f"{name} {rank:.2f}" for name, rank in found.ranks.items())
    text = f"Mean ranks over {len(tasks)} tasks, a method with a failure on a task last there: {listed}. "
    if found.critical_difference is None:
        text += "Fewer than three methods: no test of all ranks."
    else:
        assert found.p is not None
        text += (
            f"Friedman's test: p = {found.p:.3g}. Ranks further apart than {found.critical_difference:.2f} differ (Nemenyi, "
            f"{100 * level:g} %); a bar joins methods that cannot be told apart."
        )
    svg = figures.ranks(found.ranks, found.groups, "Ranks over tasks", text, "ranks")
    data = [[name, rank] for name, rank in found.ranks.items()]
    return Figure("Ranks over tasks", text, [svg], ["method", "mean rank"], data, [])
