"""The leaderboard: per task, each method's mean over seeds with its interval, as in the report."""

from __future__ import annotations

import rich.table

from harness.judging.report_tasks import Row, TaskTable


def table(found: TaskTable) -> rich.table.Table:
    """One task's rows for a terminal."""
    table = rich.table.Table(title=f"{found.task}: {found.metric}", title_justify="left", box=None, pad_edge=False)
    table.add_column("method")
    table.add_column("mean ± 95 %", justify="right")
    table.add_column("seeds", justify="right")
    table.add_column("failures", justify="right")
    table.add_column("train s", justify="right")
    for row in found.rows:
        table.add_row(
            row.title,
            _mean(row),
            f"{row.finished}/{row.seeds}",
            str(row.worst) if row.worst else "",
            "" if row.seconds is None else f"{row.seconds:.1f}",
        )
    return table


def _mean(row: Row) -> str:
    if row.mean is None:
        return "none"
    return f"{row.mean:.4f}" if row.high is None else f"{row.mean:.4f} ± {row.high - row.mean:.4f}"
