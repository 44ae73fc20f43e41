"""One live table with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table

from harness.recording.records import Status
from harness.seconds import amount, duration

PLAIN_EVERY = 15.0
"""Seconds between lines where there is no terminal."""


@dataclass
class Row:
    """The trials of one task and method."""

    task: str
    method: str
    trials: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


class Progress:
    """Shows how far a grid is; a `Listener` of the scheduler.

    Args:
        console: where to.
        cells: task and method of each trial that is to run, by hash, and its length in steps.
        slots: how many trials run at a time.
    """

    def __init__(self, console: Console, cells: dict[str, tuple[str, str, int]], slots: int) -> None:
        self.console, self.slots = console, max(1, slots)
        self._cells = cells
        self._rows: dict[tuple[str, str], Row] = {}
        for task, method, _ in cells.values():
            self._rows.setdefault((task, method), Row(task, method)).trials += 1
        self._begun: dict[str, float] = {}
        self._share: dict[str, float] = {}
        self._started = self._spoken = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=2, get_renderable=self.table)
            self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
        else:
            self.console.print(self.line())

    def started(self, hash: str) -> None:
        self._begun[hash] = time.monotonic()

    def moved(self, hash: str, step: int) -> None:
        self._share[hash] = step / self._cells[hash][2]

    def ended(self, hash: str, outcome: str) -> None:
        task, method, _ = self._cells[hash]
        row = self._rows[task, method]
        row.outcomes[outcome.split(":")[0]] += 1
        if hash in self._begun:
            row.seconds.append(time.monotonic() - self._begun.pop(hash))
        self._share.pop(hash, None)

    def tick(self) -> None:
        if self._live is None and time.monotonic() - self._spoken > PLAIN_EVERY:
            self._spoken = time.monotonic()
            self.console.print(self.line())

    @property
    def done(self) -> int:
        return sum(sum(row.outcomes.values()) for row in self._rows.values())

    def eta(self) -> float | None:
        """Seconds that remain: what is known of each cell, or of all cells, for what is not done, over what runs at a time."""
        known = [second for row in self._rows.values() for second in row.seconds]
        if not known:
            return None
        overall = sum(known) / len(known)
        remaining = 0.0
        for row in self._rows.values():
            mean = sum(row.seconds) / len(row.seconds) if row.seconds else overall
            remaining += mean * (row.trials - sum(row.outcomes.values()))
        now = time.monotonic()
        remaining -= sum(min(now - begun, overall) for begun in self._begun.values())
        return max(0.0, remaining) / max(self.slots, len(self._begun))  # the seeds of a stack share a slot

    def line(self) -> str:
        """All of it in one line."""
        total = Counter[str]()
        for row in self._rows.values():
            total += row.outcomes
        parts = [f"{self.done} of {amount(len(self._cells), 'trial')}"]
        parts += [f"{count} {name}" for name, count in total.items() if name != Status.FINISHED]
        parts += [f"{len(self._begun)} running"] if self._begun else []
        parts.append(f"{duration(time.monotonic() - self._started)} so far")
        eta = self.eta()
        if eta is not None and self.done < len(self._cells):
            parts.append(f"about {duration(eta)} left")
        return ", ".join(parts)

    def table(self) -> Table:
        """One row per task and method."""
        table = Table(title=self.line(), title_justify="left", box=None, pad_edge=False, title_style="bold")
        for name in ("task", "method", "done", "running", "trouble"):
            table.add_column(name, justify="right" if name in ("done", "running") else "left")
        running = Counter(self._cells[hash][:2] for hash in self._begun)
        for key, row in self._rows.items():
            trouble = [f"{n} {name}" for name, n in row.outcomes.items() if name != Status.FINISHED]
            at = [self._share[h] for h in self._begun if self._cells[h][:2] == key and h in self._share]
            active = f"{running[key]}" + (f" ({100 * sum(at) / len(at):.0f} %)" if at else "") if running[key] else ""
            table.add_row(
                row.task, row.method, f"{sum(row.outcomes.values())}/{row.trials}", active, ", ".join(trouble)
            )
        return table


def cells(trials: Sequence[tuple[str, str, str, int]]) -> dict[str, tuple[str, str, int]]:
    """`(hash, task, method, length)` of trials as `Progress` takes them."""
    return {hash: (task, method, max(1, length)) for hash, task, method, length in trials}
