"""The tables of a paper's page: what was run where, the verdicts, their numbers, the cells, and the CSV file of all trials."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.judging.figures import csv_text
from harness.judging.report_data import Findings, number
from harness.judging.report_tasks import cell_trials
from harness.judging.statistics import mean_interval
from harness.judging.telling import difference
from harness.judging.verdicts import Verdict
from harness.recording.records import Result, Status

COST = ("time/train_seconds", "time/cpu_seconds")
COLUMNS = 5
"""Metrics that the table of cells shows; the CSV file has them all."""


def kind(verdict: Verdict) -> str:
    """What a claim is in its grid; a control that did not come out as planted is shouted."""
    told = str(verdict.fields)
    planted = {"handicap": ("positive control", "supported"), "placebo": ("null control", "undecided")}
    for word, (name, outcome) in planted.items():
        if word in told:
            if verdict.held:
                return f"{name}, open"
            return name if verdict.outcome == outcome else f"**FAILED {name.upper()}**"
    return "claim"


def escaped(text: str) -> str:
    """A text as a cell of a table takes it: no bars, no emphasis by stars."""
    return " ".join(text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").split())


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> list[str]:
    """A table in Markdown; its last `right` columns are numbers."""
    left = len(columns) - right
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * left + "---:|" * right]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def environments(results: Iterable[Result]) -> Counter[str]:
    """Under which commits the trials ran, from what each of them recorded."""
    found: Counter[str] = Counter()
    for result in results:
        git = result.environment.get("git") or {}
        changed = " with changes that were not committed" if git.get("dirty") else ""
        found[f"{git['commit'][:12]}{changed}" if git.get("commit") else "of an unknown commit"] += 1
    return found


def about(findings: Findings) -> dict[str, Any]:
    """What the runs of a grid rest on, as plain data."""
    results = list(findings.results.values())
    machines = {
        f"{r.environment['cpu']}, {r.environment['cores']} cores, {r.environment.get('threads', 1)} thread"
        f"{'s' if r.environment.get('threads', 1) > 1 else ''} for a trial"
        + ("" if r.environment.get("device", "cpu") == "cpu" else f", on {r.environment['device']}")
        for r in results
        if "cpu" in r.environment
    }
    versions = {
        f"Python {r.environment['python']}, torch {r.environment['packages'].get('torch', '?')}"
        for r in results
        if "python" in r.environment
    }
    codes = {trial.hash: trial.code for trial in findings.plan.trials}
    return {
        "commits": dict(environments(results).most_common()),
        "first": min(result.started for result in results),
        "last": max(result.ended for result in results),
        "machines": sorted(machines),
        "versions": sorted(versions),
        "planned": len(findings.plan.trials),
        "statuses": dict(Counter(str(result.status) for result in results).most_common()),
        "stale": sum(result.code != codes[result.hash] for result in results),
        "train_seconds": sum(result.metrics.get(COST[0], 0.0) for result in results),
        "cpu_seconds": sum(result.metrics.get(COST[1], 0.0) for result in results),
        "timed": sum(COST[1] in result.metrics for result in results),
    }


def facts(told: dict[str, Any]) -> Iterator[str]:
    """The same as a list."""
    commits = ", ".join(
        f"`{name}`" + (f" ({count} trials)" if len(told["commits"]) > 1 else "")
        for name, count in told["commits"].items()
    )
    several = " **The trials ran under several states of the code.**" if len(told["commits"]) > 1 else ""
    yield f"- Run at commit {commits}, {day(told['first'], told['last'])}.{several}"
    if told["stale"]:
        yield f"- The code of {told['stale']} trials is not the code that this page was made with."
    yield f"- On {' and '.join(told['machines'])}; {' and '.join(told['versions'])}."
    ended = ", ".join(f"{count} {status}" for status, count in told["statuses"].items())
    missing = told["planned"] - sum(told["statuses"].values())
    yield f"- {told['planned']} trials: {ended}{f', {missing} not run' if missing else ''}."
    cpu = f"{minutes(told['cpu_seconds'])} of CPU time" if told["timed"] else "CPU time was not recorded"
    some = f" ({told['timed']} trials recorded it)" if 0 < told["timed"] < sum(told["statuses"].values()) else ""
    yield f"- {minutes(told['train_seconds'])} of training steps, {cpu}{some}, all trials together."


def day(first: float, last: float) -> str:
    """From when to when, in UTC."""
    begin, end = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(second)) for second in (first, last))
    return f"{begin} to {end.removeprefix(begin[:11])} UTC"


def minutes(seconds: float) -> str:
    """A time for a reader.

    >>> minutes(30), minutes(5400)
    ('30 seconds', '90 minutes')
    """
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def verdict_rows(verdicts: Sequence[Verdict]) -> Iterator[list[str]]:
    """One row for each claim."""
    for place, verdict in enumerate(verdicts, 1):
        outcome = f"**{verdict.outcome}{', exploratory' if verdict.exploratory else ''}**"
        reasons = "; ".join([verdict.reason, *verdict.exploratory])
        yield [str(place), kind(verdict), escaped(verdict.sentence), outcome, escaped(reasons)]


def part_rows(verdicts: Sequence[Verdict]) -> Iterator[list[str]]:
    """One row for each contrast of a claim, most often a task; the unit is named where the statement does not name it."""
    for place, verdict in enumerate(verdicts, 1):
        for part in verdict.parts:
            unit = "" if not part.unit or part.unit in verdict.sentence else f" ({part.unit})"
            n = len([value for value in part.differences if value is not None])
            detectable = "" if part.detectable is None else number(part.detectable, 3)
            p = "" if not n else f"{part.p_supported:.2g} / {part.p_contradicted:.2g}"
            yield [str(place), escaped(part.label + unit), together(difference(part)), detectable, str(n), together(p)]


def together(text: str) -> str:
    """Numbers that a narrow column does not tear apart."""
    return text.replace(" ", "\u00a0")


def cell_metrics(findings: Findings) -> list[str]:
    """The metrics that the claims name or compare by, each task's own test metric and the loss among them."""
    every = {name for result in findings.results.values() for name in result.metrics}
    tests = [findings.evidence.metric(table.task, "") for table in findings.tables]
    named = [text for verdict in findings.verdicts for text in texts(verdict.fields)]
    found = dict.fromkeys([*named, *tests, "test/loss"])
    return [name for name in found if name in every]


def texts(value: Any) -> Iterator[str]:
    """Every text inside of a claim."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


def cells(findings: Findings) -> Iterator[str]:
    """A table for each task: every cell with mean and interval of the metrics that the claims are about."""
    evidence = findings.evidence
    shown = cell_metrics(findings)[:COLUMNS]
    for task in evidence.tasks("*"):
        own = [
            name for name in shown if any(v for c in evidence.cells(task, "*") for v in known(findings, task, c, name))
        ]
        rows = []
        for cell in evidence.cells(task, "*"):
            numbers = [interval(known(findings, task, cell, name)) for name in own]
            trials = cell_trials(evidence, task, cell)
            finished = sum(
                trial.hash in findings.results and findings.results[trial.hash].status is Status.FINISHED
                for trial in trials
            )
            label = escaped(cell.partition(" · ")[2])
            rows.append([label, f"{finished}/{len(trials)}", *numbers])
        yield f"### {task}"
        yield ""
        yield from table(["cell", "finished", *own], rows, right=len(own))


def known(findings: Findings, task: str, cell: str, metric: str) -> list[float]:
    """A final metric of the trials of a cell that have it."""
    values = (findings.evidence.value(trial, metric) for trial in cell_trials(findings.evidence, task, cell))
    return [value for value in values if value is not None]


def interval(values: Sequence[float]) -> str:
    """The mean with Student's 95 % interval over seeds."""
    if not values:
        return ""
    mean, half = mean_interval(values)
    return number(mean, 4) if half is None else together(f"{number(mean, 4)} ± {number(half, 2)}")


def csv(findings: Findings) -> str:
    """One row for each trial: what it is, how it ended, and the final metrics that claims, tables and figures use.

    A claim about early values adds them as `METRIC@SHARE`.
    """
    evidence = findings.evidence
    named = sorted({text for verdict in findings.verdicts for text in texts(verdict.fields) if "/" in text})
    wanted = (
        *named,
        *cell_metrics(findings),
        "test/loss",
        "val/",
        "probe/oui/mean",
        *COST,
        "steps_to_best",
        "actions/",
    )
    every = sorted({name for result in findings.results.values() for name in result.metrics})
    metrics = [name for name in every if name.startswith(wanted)]
    early = early_metrics(findings.verdicts)
    rows = []
    for trial in findings.plan.reported:
        result = findings.results.get(trial.hash)
        about = [trial.task_label, trial.cell.partition(" · ")[2], trial.spec.seed_label]
        end = [trial.hash, result.code, str(result.status)] if result else [trial.hash, "", "not run"]
        final = [result.metrics.get(name) if result else None for name in metrics]
        past = [evidence.early(trial, name, share) if result else None for name, share in early]
        rows.append([*about, *end, *final, *past])
    columns = ["task", "cell", "seed", "trial", "code", "status", *metrics, *(f"{n}@{share:g}" for n, share in early)]
    return csv_text(columns, sorted(rows, key=lambda row: [*row[:2], natural(str(row[2]))])).replace("\r\n", "\n")


def natural(seed: str) -> tuple[int, str]:
    """Seeds in the order of their numbers."""
    return (int(seed), "") if seed.isdigit() else (0, seed)


def early_metrics(verdicts: Sequence[Verdict]) -> list[tuple[str, float]]:
    """The metrics that claims read before the end, each with the share of the training."""
    found = {
        (str(verdict.fields[name]), float(verdict.fields["early"]))
        for verdict in verdicts
        if "early" in verdict.fields
        for name in ("correlated", "precision", "than")
        if "/" in str(verdict.fields.get(name, ""))
    }
    return sorted(found)
