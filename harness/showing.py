"""What the command line prints: tables of the registries, of a plan, and the end of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.options import Schema
from harness.planning.explaining import explain
from harness.planning.plan import Plan
from harness.planning.survey import State, Survey, estimate
from harness.recording.garbage import Garbage
from harness.recording.records import Status
from harness.recording.results import Results
from harness.registry import Item
from harness.resources import Resources
from harness.seconds import amount, duration


class Terminal(Console):
    """A console on which no text of a grid or of a trial moves the cursor, clears the screen or sets a title."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text with its control characters written out."""
        return super().render_str(visible(text), **options)


def visible(text: str) -> str:
    """A text with control characters written out, but for ends of lines and tabs.

    >>> print(visible("a\x1b[2Jb"))
    a\\x1b[2Jb
    """
    return "".join(repr(c)[1:-1] if category(c) == "Cc" and c not in "\n\t" else c for c in text)


def items(kind: str, listed: Sequence[Item]) -> Table:
    """One kind of registered classes."""
    table = Table(title=f"{kind}s", title_justify="left", box=None, pad_edge=False, title_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for item in listed:
        table.add_row(item.name, item.summary)
    return table


def card(item: Item) -> RenderableType:
    """All that is known of one class."""
    lines: list[RenderableType] = [Text(f"{item.kind} {item.name}", style="bold"), Text(item.summary)]
    facts = {
        "offers": ", ".join(item.offers),
        "needs": ", ".join(item.needs),
        "owns": ", ".join(item.owns),
        "metric": f"{item.metric} ({item.direction})" if item.metric else "",
        "source": item.source,
        "from": item.origin,
    }
    lines += [Text(f"  {name}: {value}") for name, value in facts.items() if value]
    for title, schemas in (("options", item.options), ("recipe", item.recipe)):
        if schemas:
            lines.append(Padding(_schemas(title, schemas), (1, 0, 0, 2)))
    return Group(*lines)


def _schemas(title: str, schemas: dict[str, Schema]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in (title, "type", "default"):
        table.add_column(name)
    for name, schema in schemas.items():
        table.add_row(name, _type(schema), str(schema.get("default")))
    return table


def _type(schema: Schema) -> str:
    kind = schema["type"]
    text = " | ".join(map(str, schema["allowed"])) if kind == "enum" else kind
    if kind == "list":
        text = f"list of {_type(schema['items'])}"
    return f"{text} or none" if schema.get("optional") else text


def _asked(resources: Resources) -> str:
    named = {"CPU": resources.cpus, "GPU": resources.gpus, **dict(resources.custom)}
    each = ", ".join(f"{amount:g} {name}" for name, amount in named.items() if amount)
    return each if resources.ranks == 1 else f"{resources.ranks} ranks of {each}"


def overview(plan: Plan, state: Survey, machine: Mapping[str, float]) -> Iterator[RenderableType]:
    """A plan: its cells with their statuses, what is left out and why, and an estimate of the time on a machine.

    `machine` holds its resources by Ray's names.
    """
    cells: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for trial in plan.trials:
        cells[trial.task_label, trial.method_label, _asked(trial.resources)][state.statuses[trial.hash]] += 1
    table = Table(
        title=f"{plan.name}: {amount(len(plan.trials), 'trial')}", title_justify="left", box=None, pad_edge=False
    )
    for name in ("task", "method", "each", "trials"):
        table.add_column(name)
    above = ""
    for (task, method, resources), counts in cells.items():
        done = ", ".join(f"{count} {name}" for name, count in counts.items())
        table.add_row("" if task == above else task, method, resources, done)  # a label of five lines is read once
        above = task
    yield table
    if plan.left_out:
        yield ""
        left = Table(title="left out", title_justify="left", box=None, pad_edge=False)
        for name in ("task", "method", "because"):
            left.add_column(name)
        for cell in plan.left_out:
            left.add_row(cell.task, cell.method, cell.reason)
        yield left
    yield from plan.notes
    yield ""
    if len(plan.stages) > 1:
        yield f"{len(plan.stages)} stages: trials of a later one take values from an earlier one."
    seconds = estimate(plan, state, machine)
    if state.to_run:
        known = "unknown until some trials are done" if seconds is None else f"about {duration(seconds)}"
        held = [amount(int(machine[name]), name) for name in ("CPU", "GPU") if machine[name]]
        yield f"{amount(len(state.to_run), 'trial')} to run on {' and '.join(held)}, time: {known}"
    else:
        yield "Everything is done."
    if stale := [state.reasons[hash] for hash, status in state.statuses.items() if status is State.STALE]:
        yield f"{len(stale)} stale: {stale[0]}. They are computed anew, or kept with: harness run --keep-stale"
    if failed := state.counts[State.FAILED]:
        yield f"{failed} failed, and left until their code changes. If something else was wrong: harness run --retry-failed"


def explanation(plan: Plan, prefix: str) -> Table:
    """Where each value of one trial comes from."""
    table = Table(title_justify="left", box=None, pad_edge=False)
    for name in ("field", "value", "from"):
        table.add_column(name)
    for field, value, origin in explain(plan, prefix):
        table.add_row(field, str(value), origin)
    return table


def rubbish(found: Sequence[Garbage], folder: Path) -> Iterator[RenderableType]:
    """What nothing needs any more, by reason."""
    by_reason: dict[str, list[Garbage]] = defaultdict(list)
    for item in found:
        by_reason[item.reason].append(item)
    table = Table(title=f"{folder}: what nothing needs any more", title_justify="left", box=None, pad_edge=False)
    for name in ("because", "how many", "MiB", "for example"):
        table.add_column(name)
    for reason, alike in by_reason.items():
        size = sum(item.bytes for item in alike) / 2**20
        table.add_row(reason, str(len(alike)), f"{size:.1f}", str(alike[0].path.relative_to(folder)))
    yield table if found else f"{folder}: everything there is needed."


def conclusion(out: Console, plan: Plan, results: Results, line: str) -> int:
    """The leaderboard and what went wrong; returns the exit status.

    Args:
        out: where to.
        plan: the grid that has ended.
        results: what it has left.
        line: the grid as the next command names it, with its options.
    """
    from harness.judging import leaderboard  # it imports scipy, which the other commands do without
    from harness.judging.report_tasks import task_tables

    found = results.results(trial.hash for trial in plan.trials)
    for rows in task_tables(plan, found):
        out.print(leaderboard.table(rows))
        if rows.choice:
            out.print(rows.choice)
        out.print()
    bad = [(trial, found.get(trial.hash)) for trial in plan.trials]
    trouble = [(trial, result) for trial, result in bad if result is None or not result.status.good]
    for trial, result in trouble[:10]:
        ended = f"{result.status}: {result.reason}" if result else "has no result"
        out.print(f"{trial.cell}, seed {trial.spec.seed_label} ({trial.hash}) {ended}")
    if len(trouble) > 10:
        out.print(f"… and {len(trouble) - 10} more: harness plan {line}", soft_wrap=True)
    if any(result and result.status is Status.FAILED for _, result in trouble):
        out.print(f"If it was not the code: harness run {line} --retry-failed", soft_wrap=True)
    return 1 if trouble else 0


def where_to_look(out: Console, line: str, browse: str) -> None:
    """The next commands.

    Args:
        out: where to.
        line: the grid as they name it, with its options.
        browse: what shows the runs in MLflow.
    """
    out.print(f"Read the report:   harness report {line}", soft_wrap=True)
    out.print(f"Browse every run:  {browse}", soft_wrap=True)
    out.print(f"See the plan:      harness plan {line}", soft_wrap=True)
