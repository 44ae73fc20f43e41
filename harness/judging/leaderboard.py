"""The leaderboard: per task, each method's mean over seeds with its interval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from harness.judging.statistics import mean_interval
from harness.recording.records import Result, Status

WORST = (Status.DIVERGED, Status.OUT_OF_MEMORY, Status.TIMED_OUT)
"""Ends that rank worst in every comparison, whatever the others reached."""


@dataclass(frozen=True)
class Entry:
    """A trial as the leaderboard sees it."""

    hash: str
    task: str
    method: str
    metric: str
    direction: str


@dataclass(frozen=True)
class Row:
    """One method on one task."""

    method: str
    metric: str
    mean: float | None
    half: float | None
    """Half-width of the 95 % interval over seeds."""
    finished: int
    trials: int
    worst: int
    """Trials that diverged or ran out of memory or time."""
    seconds: float | None


def rank(entries: Sequence[Entry], results: Mapping[str, Result]) -> dict[str, list[Row]]:
    """The rows of each task, the best first: fewer failures come before a better mean.

    Scores are the test split's, read once at the selected checkpoint.
    """
    cells: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        cells[entry.task, entry.method].append(entry)
    board: dict[str, list[tuple[tuple[float, float], Row]]] = defaultdict(list)
    for (task, method), members in cells.items():
        row = _row(method, members, results)
        sign = -1.0 if members[0].direction == "max" else 1.0
        score = sign * row.mean if row.mean is not None else float("inf")
        board[task].append(((row.worst / row.trials, score), row))
    return {task: [row for _, row in sorted(rows, key=lambda pair: pair[0])] for task, rows in board.items()}


def _row(method: str, members: Sequence[Entry], results: Mapping[str, Result]) -> Row:
    metric = members[0].metric.replace("val/", "test/", 1)
    found = [results[entry.hash] for entry in members if entry.hash in results]
    finished = [result for result in found if result.status == Status.FINISHED and metric in result.metrics]
    mean, half = mean_interval([result.metrics[metric] for result in finished]) if finished else (None, None)
    seconds = [result.metrics["time/train_seconds"] for result in finished]
    return Row(
        method=method,
        metric=metric,
        mean=mean,
        half=half,
        finished=len(finished),
        trials=len(members),
        worst=sum(result.status in WORST for result in found),
        seconds=sum(seconds) / len(seconds) if seconds else None,
    )


def table(task: str, rows: Sequence[Row]) -> Table:
    """One task's rows for a terminal."""
    table = Table(title=f"{task}: {rows[0].metric}", title_justify="left", box=None, pad_edge=False)
    table.add_column("method")
    table.add_column("mean ± 95 %", justify="right")
    table.add_column("seeds", justify="right")
    table.add_column("failures", justify="right")
    table.add_column("train s", justify="right")
    for row in rows:
        interval = "" if row.half is None else f" ± {row.half:.4f}"
        table.add_row(
            row.method,
            "none" if row.mean is None else f"{row.mean:.4f}{interval}",
            f"{row.finished}/{row.trials}",
            str(row.worst) if row.worst else "",
            "" if row.seconds is None else f"{row.seconds:.1f}",
        )
    return table
