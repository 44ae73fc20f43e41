"""Commands on what the results folder holds: MLflow, comparisons, reports, and what can go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands.shared import (
    RESULTS,
    PluginOption,
    ResultsOption,
    SetOption,
    TrackingOption,
    app,
    browse,
    check_kept,
    check_tracking,
    console,
    fail,
    name_of,
    open_plan,
    open_registry,
    open_results,
)

if TYPE_CHECKING:
    from harness.recording.results import Results


@app.command()
def sync(
    grid: Annotated[
        str | None, typer.Argument(metavar="GRID", help="A grid file, or a grid's name; all of them unless given.")
    ] = None,
    results: ResultsOption = RESULTS,
    tracking: TrackingOption = None,
) -> None:
    """Brings MLflow up to date with the results folder. Without mlflow.db it is built anew."""
    from harness.recording.grids import submissions, sync_command
    from harness.recording.records import RecordsError
    from harness.recording.store import TrackingError
    from harness.recording.tracking import sync as project

    check_tracking(tracking)
    memory = open_results(results)
    known = [name for name in memory.grids() if submissions(memory, name)]  # one that was refused at its start has none
    wanted = known if grid is None else [name_of(grid)]
    for name in wanted:
        check_kept(memory, name)
    if not known:
        raise fail(f"--results: {memory.folder} holds no grid; run one first: harness run GRID", 2)
    pending = 0
    for name in wanted:
        try:
            report = project(memory, name, tracking)
        except (TrackingError, RecordsError) as error:
            raise fail(f"{name}: {error}", 3) from error
        pending += report.pending
        typer.echo(f"{name}: {report}")
    if pending:
        again = sync_command(grid, results, tracking)
        raise fail(f"MLflow is not up to date; nothing is lost. Next: {again}", 3)
    typer.echo(f"Next: {browse(tracking, results)}")


@app.command()
def ui(
    results: ResultsOption = RESULTS,
    tracking: TrackingOption = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
) -> None:
    """Opens MLflow on the results folder, for this machine alone."""
    from harness.recording.store import TrackingError
    from harness.recording.tracking import ui_command

    check_tracking(tracking)
    memory = open_results(results)
    if tracking is None and not (memory.folder / "mlflow.db").exists():
        made = f"harness sync --results {results}" if memory.grids() else f"harness run GRID --results {results}"
        raise fail(f"--results: {memory.folder} holds no mlflow.db; make it with: {made}", 2)
    try:
        command = ui_command(memory, tracking, port)
    except TrackingError as error:
        raise fail(str(error), 2) from error
    typer.echo(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    os.execvp(command[0], command)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A grid's name, a results folder, or FOLDER:GRID.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What it is compared with: differences are B minus A.")],
    by: Annotated[str, typer.Option("--by", metavar="METRIC", help="Each task's own on test unless given.")] = "",
    direction: Annotated[str, typer.Option("--direction", help="min or max, where the metric does not say.")] = "",
    level: Annotated[float, typer.Option("--level", min=0.0001, max=0.5, help="The error level, after Holm.")] = 0.05,
    plugin: PluginOption = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Says what changed between two grids, cell by cell. Also between results folders and versions of the code."""
    from harness.judging import compare as comparing
    from harness.recording.records import RecordsError

    memory = open_results(results)
    registry = open_registry(plugin)
    if direction not in ("", "min", "max"):
        raise fail(f"--direction: found {direction!r}, allowed: min, max", 2)
    known = {item.name: (item.metric, item.direction) for item in registry.items("task")}
    try:
        sides = [comparing.find_side(text, memory) for text in (first, second)]
        comparing.check_metric(by, sides)
        found = comparing.compare(sides[0], sides[1], comparing.metric_of(known, by, direction), level)
    except RecordsError as error:
        raise fail(f"compare: {error}", 2) from error
    out = console()
    out.print(comparing.table(found))
    for name, cells in ((first, found.only_first), (second, found.only_second)):
        if cells:
            out.print(f"only in {name}: {', '.join(cells)}")
    if not found.cells:
        raise fail(f"compare: {first} and {second} have no cell in common", 2)
    out.print(f"Next: harness report {sides[1].place}", soft_wrap=True)


@app.command()
def report(
    grid: Annotated[str, typer.Argument(metavar="GRID", help="A grid file, or the name of a grid that was run.")],
    form: Annotated[str, typer.Option("--format", help="html, markdown, csv or parquet.")] = "html",
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write it; in the grid's results folder unless given.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Opens it.")] = False,
    set_: SetOption = None,
    plugin: PluginOption = None,
    results: ResultsOption = RESULTS,
    tracking: TrackingOption = None,
) -> None:
    """Writes the report of a grid. Verdicts, tables, figures; as one page, or as Markdown, CSV or Parquet.

    The page is also kept in MLflow, on the parent run.
    """
    from harness.judging.report import FORMATS, write_report
    from harness.recording.grids import submissions
    from harness.recording.records import RecordsError

    if form not in FORMATS:
        from harness.options import nearest

        raise fail(f"--format: found {form!r}, allowed: {', '.join(FORMATS)}{nearest(form, list(FORMATS))}", 2)
    check_tracking(tracking)
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        found = "is a folder" if out.is_dir() else "lies in a folder that does not exist"
        raise fail(f"--out: found {str(out)!r}, which {found}, allowed: a file to write", 2)
    if tracking is not None and (out is not None or form != "html"):
        beside = "--out" if out is not None else f"--format {form}"
        raise fail(f"--tracking: found with {beside}, allowed: without; MLflow keeps the page of the results folder", 2)
    registry = open_registry(plugin)
    planned, memory = open_plan(_grid_file(grid, open_results(results)), set_, registry, results)
    if not submissions(memory, planned.name):
        raise fail(f"report: grid {planned.name} has not been run into {results}. Next: harness run {grid}", 2)
    try:
        file = write_report(planned, memory, registry, form, out)
    except RecordsError as error:
        raise fail(f"report: {error}", 3) from error
    typer.echo(str(file))
    if form == "html" and out is None:
        _project_report(memory, planned.name, tracking)
    if open_:
        typer.launch(file.as_uri())


def _grid_file(grid: str, memory: Results) -> Path:
    """The file of a grid: itself, or as it was last submitted; exit status 2 for what is neither a file nor such a name."""
    from harness.options import nearest
    from harness.planning.reading import is_file
    from harness.recording.grids import submissions

    known = memory.grids()
    if grid in known and not is_file(Path(grid)) and (past := submissions(memory, grid)):
        return past[-1].folder / "grid.yaml"
    if not is_file(Path(grid)) and not Path(grid).suffix:
        raise fail(
            f"GRID: found {grid!r}, allowed: a file, {', '.join(known) or 'no name yet'}{nearest(grid, known)}", 2
        )
    return Path(grid)


def _project_report(memory: Results, name: str, tracking: str | None) -> None:
    """Puts the report into MLflow, where there is one. The file is there whatever becomes of that."""
    from harness.recording.records import RecordsError
    from harness.recording.store import TrackingError
    from harness.recording.tracking import sync as project

    if tracking is None and not (memory.folder / "mlflow.db").exists():
        return
    try:
        project(memory, name, tracking)
    except (TrackingError, RecordsError) as error:
        typer.echo(f"not in MLflow yet ({error}); later: harness sync {name}", err=True)


@app.command()
def gc(
    free: Annotated[bool, typer.Option("--free", help="Deletes what is shown.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also trials that no grid names any more.")] = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Shows what nothing needs any more of the results. Frees it when told to."""
    from harness.recording.garbage import garbage
    from harness.recording.records import RecordsError
    from harness.showing import rubbish

    memory = open_results(results)
    if not results.is_dir():
        raise fail(f"--results: found {str(results)!r}, which does not exist, allowed: a folder with results", 2)
    try:
        found = garbage(memory, everything)
    except RecordsError as error:
        raise fail(f"gc: {error}", 2) from error
    out = console()
    for part in rubbish(found, memory.folder):
        out.print(part)
    if free:
        for item in found:
            item.free()
        out.print("All of it is gone.")
    elif found:
        out.print(f"Next: harness gc --free{' --all' if everything else ''} --results {results}")
