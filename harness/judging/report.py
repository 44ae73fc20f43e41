"""The report of a grid: one HTML page that needs nothing else, or its contents as Markdown, CSV or Parquet.

The page loads nothing and runs nothing: its content policy allows one style sheet, named by its hash, and pictures inside the
page. Every text that comes from a grid, a plugin or a traceback is escaped.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.judging.drawing import DASH_ARRAYS
from harness.judging.figures import Figure, csv_text
from harness.judging.report_choices import stopped, tuning_figures, tuning_table, tunings
from harness.judging.report_data import Findings, Table, gather, number, numbers, trial_table
from harness.judging.report_figures import task_figures, verdict_figure
from harness.judging.report_overall import overall
from harness.judging.report_rules import Rules, rules
from harness.judging.report_tasks import Row, TaskTable
from harness.judging.telling import difference, rests
from harness.judging.verdicts import Part, Verdict
from harness.planning.plan import Plan
from harness.recording.projection import literal
from harness.recording.records import write_atomically
from harness.recording.results import Results
from harness.registry import Registry
from harness.seconds import amount

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"

FORMATS = {"html": "report.html", "markdown": "report.md", "csv": "report.csv", "parquet": "report.parquet"}

SYMBOLS = {"supported": "✓", "contradicted": "✗", "undecided": "?"}

NORMAL = "The intervals are Student's: they take the scores of the seeds to be normally distributed."
"""Said where the tables are."""

CONTRASTS = [
    "contrast",
    "mean [interval]",
    "detectable",
    "unit",
    "effect g",
    "+ / = / −",
    "p holds",
    "p fails",
    "differences by seed",
]
EARLY = ["claim", "on", "verdict", "mean [interval]", "by seed"]

HELD = 20
"""Trials that hold a verdict back, of those that it names."""

ERRORS = 20
"""Tracebacks that a page shows."""


def write_report(plan: Plan, memory: Results, registry: Registry, form: str = "html", file: Path | None = None) -> Path:
    """Writes the report of a grid and returns its file: `report.html` in the grid's folder unless given.

    Args:
        form: one of `FORMATS`; `csv` and `parquet` have one row for each trial.
        file: where to write it.

    Raises:
        RecordsError: if it cannot be written.
    """
    findings = gather(plan, memory, registry)
    target = file or memory.grid(plan.name) / FORMATS[form]
    content: str | bytes
    if form == "html":
        content = html(findings, memory)
        verdicts = [verdict.to_json() for verdict in findings.verdicts]
        write_atomically(memory.grid(plan.name) / "verdicts.json", json.dumps(verdicts, indent=1))
    elif form == "markdown":
        content = markdown(findings, rules(findings, memory))
    elif form == "csv":
        content = csv_text(*trial_table(findings))
    else:
        content = parquet(findings)
    write_atomically(target, content)
    target.chmod(0o644)  # a report is made to be handed on
    return target


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """A page makes millions of objects, hardly any in cycles: walking all of them again and again is a fifth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(100 * before[0], *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_seldom_collected()
def html(findings: Findings, memory: Results) -> str:
    """The page."""
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    tuned = tunings(findings)
    verdicts = [(verdict, verdict_figure(verdict, f"v{index}")) for index, verdict in enumerate(findings.verdicts)]
    tasks = [(table, task_figures(findings, table, memory, f"t{index}")) for index, table in enumerate(findings.tables)]
    return (
        templates()
        .get_template("report.html")
        .render(
            style=style,
            digest=digest,
            findings=findings,
            plan=findings.plan,
            verdicts=verdicts,
            summary=summary(findings),
            tasks=tasks,
            overall=overall(findings),
            screening=list(screening(findings.verdicts)),
            rules=rules(findings, memory),
            stopped=stopped(findings),
            tuned=[tuning_table(tuned)] if tuned else [],
            tuning_figures=list(tuning_figures(findings, tuned)),
            errors=ERRORS,
            normal=NORMAL,
            ended=ended(findings),
        )
    )


@cache
def templates() -> Environment:
    """The templates with the filters that they use; everything is escaped unless it is markup."""
    import jinja2
    from markupsafe import Markup

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": number, "numbers": numbers, "difference": difference, "svg": Markup, "symbol": symbol}
    found.filters["details"] = lambda part: list(details(part))
    found.filters |= {"mark": mark, "rests": rests}
    found.globals["dash_arrays"] = DASH_ARRAYS
    return found


def symbol(outcome: str) -> str:
    """A mark that is told apart without colour."""
    return SYMBOLS[outcome]


def mark(row: Row) -> str:
    """How a row compares with the baseline, in few characters."""
    if not row.mark:
        return ""
    sign = {"better": "▲ better", "worse": "▼ worse"}.get(row.mark, row.mark)
    return f"{sign} (p = {number(row.p, 2)})"


def details(part: Part) -> Iterator[tuple[str, str]]:
    """What a contrast says of how it came about, one line each."""
    for name, value in part.details.items():
        yield name, _told(value)


def detail_line(part: Part) -> str:
    """The same in one line."""
    return "; ".join(f"{name}: {value}" for name, value in details(part))


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_told(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value))
    return number(value) if isinstance(value, float) else str(value)


def screening(verdicts: Sequence[Verdict]) -> Iterator[list[str]]:
    """What early measures are worth: one row for each contrast of a claim about precision, correlation or screening."""
    for verdict in verdicts:
        if verdict.kind not in ("precision", "correlated", "screening"):
            continue
        for part in verdict.parts:
            yield [verdict.sentence, part.label, str(verdict.outcome), difference(part), detail_line(part)]


def summary(findings: Findings) -> str:
    """The first line: how many claims have which verdict."""
    outcomes = [str(verdict.outcome) for verdict in findings.verdicts]
    if not outcomes:
        return "The grid states no claim."
    told = [f"{outcomes.count(name)} {name}" for name in SYMBOLS if name in outcomes]
    return f"{amount(len(outcomes), 'claim')}: {', '.join(told)}."


def ended(findings: Findings) -> str:
    """When the last of the trials ended."""
    last = max((result.ended for result in findings.results.values()), default=0.0)
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(last)) if last else "not run yet"


def markdown(findings: Findings, judged: Rules | None = None) -> str:
    """The report as Markdown: all but figures, tracebacks and the grid's text.

    Names and messages stand in code spans, so nothing in them is markup.
    """
    plan = findings.plan
    lines = [f"# {literal(plan.name)}", "", summary(findings), ""]
    counts = ", ".join(f"{count} {name}" for name, count in findings.counts.items())
    lines += [f"{amount(len(plan.trials), 'trial')}: {counts}; the last ended {ended(findings)}.", ""]
    for verdict in findings.verdicts:
        exploratory = " (exploratory)" if verdict.exploratory else ""
        lines += [f"## {str(verdict.outcome).capitalize()}{exploratory}: {literal(verdict.sentence)}", ""]
        lines += [literal("; ".join([verdict.reason, *verdict.exploratory])), ""]
        lines += [*markdown_table(CONTRASTS, [contrast_cells(part) for part in verdict.parts]), ""]
        lines += [f"- {literal(f'{part.label}: {detail_line(part)}')}" for part in verdict.parts if part.details]
        lines += [f"- Held back by {literal(held)}" for held in verdict.held[:HELD]]
        lines += [f"- … and {len(verdict.held) - HELD} more"] if len(verdict.held) > HELD else []
        lines += ["", literal(rests(verdict)), ""]
    if tables := overall(findings).tables:
        lines += ["## All tasks", ""]
        lines += [line for table in tables for line in table_lines(table)]
    for one in findings.tables:
        lines += [f"## {literal(one.task)}", "", *task_lines(one), ""]
    if tuned := tunings(findings):
        lines += ["## Tuning", "", *table_lines(tuning_table(tuned))]
    if tables := stopped(findings):
        lines += ["## Screening", "", *(line for table in tables for line in table_lines(table))]
    if early := list(screening(findings.verdicts)):
        lines += ["## Early measures", "", *markdown_table(EARLY, early), ""]
    if judged:
        lines += ["## Early-stopping rules at matched recall", "", *markdown_table(judged.columns, judged.rows), ""]
        lines += ["## The same rules, where a success is a solved task", "", literal(judged.note), ""]
        lines += [*markdown_table(judged.columns, judged.solved), ""] if judged.solved else []
    if plan.left_out:
        rows = [[left.task, left.method, left.reason] for left in plan.left_out]
        lines += ["## Left out", "", *markdown_table(["task", "method", "because"], rows), ""]
    if findings.trouble:
        rows = [[t.status, str(len(t.trials)), t.reason, t.trials[0]] for t in findings.trouble]
        lines += ["## Not finished", "", *markdown_table(["end", "trials", "reason", "for example"], rows), ""]
    lines += ["## What it rests on", ""]
    lines += [f"- {name}: {literal(value)}" for name, value in findings.facts.items()]
    lines += [f"- {literal(note)}" for note in plan.notes]
    return "\n".join(lines) + "\n"


def table_lines(table: Table) -> list[str]:
    """A table in Markdown with its title and its note."""
    note = [literal(table.note), ""] if table.note else []
    return [f"### {literal(table.title)}", "", *markdown_table(table.columns, table.rows), "", *note]


def contrast_cells(part: Part) -> list[str]:
    """A contrast as a row under `CONTRASTS`."""
    paired = part.paired
    effect = number(paired.effect_size, 3) if paired else ""
    counts = f"{paired.wins} / {paired.ties} / {paired.losses}" if paired else ""
    chances = number(part.p_supported, 3), number(part.p_contradicted, 3)
    detectable = number(part.detectable, 3)
    return [part.label, difference(part), detectable, part.unit, effect, counts, *chances, numbers(part.differences)]


def task_lines(table: TaskTable) -> list[str]:
    """One task's tables in Markdown."""
    score = f"{literal(table.metric)} ({table.better} is better)"
    columns = ["method", score, "95 % interval", "seeds", "not finished", "train s", "mark"]
    notes = [NORMAL, *(literal(note) for note in (table.choice, table.note) if note)]
    lines = [*markdown_table(columns, [[*_row_cells(r), mark(r)] for r in table.rows]), "", *notes]
    if table.cells:
        lines += ["", f"### All {len(table.cells)} cells", ""]
        lines += markdown_table(columns[:-1], [_row_cells(r) for r in table.cells])
    return lines


def _row_cells(row: Row) -> list[str]:
    interval = "" if row.low is None else f"[{number(row.low)}, {number(row.high)}]"
    seconds = "" if row.seconds is None else number(row.seconds, 3)
    seeds = f"{row.finished}/{row.seeds}"
    return [row.title, number(row.mean), interval, seeds, row.others, seconds]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose cells are taken literally; its columns are no text of anybody."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(literal(cell) for cell in row)} |" for row in rows]


def parquet(findings: Findings) -> bytes:
    """The trials as a Parquet file: numbers as numbers, everything else as text."""
    import pyarrow
    import pyarrow.parquet

    columns, rows = trial_table(findings)
    table = {}
    for name, values in zip(columns, zip(*rows, strict=True), strict=True):
        numeric = all(value is None or isinstance(value, int | float) for value in values)
        kept = values if numeric else [None if value is None else str(value) for value in values]
        whole = numeric and all(value is None or isinstance(value, int) for value in values)
        kind = pyarrow.string() if not numeric else pyarrow.int64() if whole else pyarrow.float64()
        table[name] = pyarrow.array(kept, kind)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(table), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


__all__ = ["FORMATS", "Figure", "html", "markdown", "parquet", "write_report"]
