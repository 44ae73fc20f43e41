"""One live table with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table

from harness.recording.records import Status
from harness.seconds import amount, duration

PLAIN_EVERY = 15.0
"""Seconds between lines where there is no terminal."""


class Cell(NamedTuple):
    """What is known of a trial that is to run."""

    task: str
    method: str
    length: int
    """In steps."""
    slots: int = 1
    """How many such trials run at a time."""
    stacked: bool = False
    """Whether it may share a slot with other seeds."""


@dataclass
class Row:
    """The trials of one task and method."""

    task: str
    method: str
    slots: int
    stacked: bool
    trials: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


class Progress:
    """Shows how far a grid is; a `Listener` of the scheduler.

    Args:
        console: where to.
        cells: of each trial that is to run, by hash.
        slots: how many trials that ask for one CPU run at a time.
    """

    def __init__(self, console: Console, cells: Mapping[str, Cell], slots: int) -> None:
        self.console, self.slots = console, max(1, slots)
        self._cells = cells
        self._rows: dict[tuple[str, str], Row] = {}
        for task, method, _, at_once, stacked in cells.values():
            self._rows.setdefault((task, method), Row(task, method, at_once, stacked)).trials += 1
        self._begun: dict[str, float] = {}
        self._share: dict[str, float] = {}
        self._ended: dict[str, str] = {}
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
        self._share[hash] = step / max(1, self._cells[hash].length)

    def lost(self, hash: str) -> None:
        self._begun.pop(hash, None)
        self._share.pop(hash, None)

    def ended(self, hash: str, outcome: str) -> None:
        row = self._rows[self._cells[hash][:2]]
        if hash in self._ended:  # what another grid was at is tried again
            row.outcomes -= Counter([self._ended[hash]])
        self._ended[hash] = outcome.split(":")[0]
        row.outcomes[self._ended[hash]] += 1
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
        """Seconds that remain: what is known of each cell, or of all cells, for what is not done, over what runs at a time.

        Cells that ask for different resources, and could run beside each other, count one after the other.
        """
        known = [second for row in self._rows.values() for second in row.seconds]
        if not known:
            return None
        overall = sum(known) / len(known)
        now, remaining, most = time.monotonic(), 0.0, len(self._cells) - self.done
        for key, row in self._rows.items():
            mean = sum(row.seconds) / len(row.seconds) if row.seconds else overall
            left = mean * (row.trials - sum(row.outcomes.values()))
            left -= sum(min(now - begun, mean) for hash, begun in self._begun.items() if self._cells[hash][:2] == key)
            slots = max(row.slots, len(self._begun)) if row.stacked else row.slots
            remaining += left / max(1, min(slots, most))
        return max(0.0, remaining)

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
