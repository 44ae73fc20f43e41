"""The command line, thin: every command reads its input, calls one function, and says what to do next.

Exit status: 0 all done; 1 some trial failed, ran out of memory or time, was lost or blocked; 2 bad input, nothing
started; 3 infrastructure; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from harness.planning.plan import Plan
    from harness.recording.records import Results
    from harness.registry import Registry
    from harness.running.driver import Options
    from harness.running.scheduling import Outcome

app = typer.Typer(
    name="harness",
    help="Benchmark training methods: tasks x methods x seeds, every claim with its evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ResultsOption = Annotated[
    Path, typer.Option("--results", envvar="HARNESS_RESULTS", help="The folder that remembers everything computed.")
]
PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A Python file that registers tasks, methods or probes.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Overrides a field; recipe.FIELD is the last word.")
]
TrackingOption = Annotated[
    str | None, typer.Option("--tracking", help="An MLflow tracking URI; SQLite in the results folder unless given.")
]
GridArgument = Annotated[Path, typer.Argument(metavar="GRID", help="A grid file.")]
RESULTS = Path("results")


def fail(message: str, status: int) -> typer.Exit:
    """Says what is wrong, on standard error, and ends with a status."""
    typer.echo(message, err=True)
    return typer.Exit(status)


def open_registry(plugins: list[Path] | None) -> Registry:
    """What is registered; a plugin that does not load is reported and left out."""
    from harness.registry import Registry, RegistryError

    try:
        registry = Registry(plugins or [])
    except RegistryError as error:
        raise fail(str(error), 2) from error
    for origin, trouble in registry.broken.items():
        typer.echo(f"{origin}: left out, it does not load ({trouble})", err=True)
    return registry


def console() -> Console:
    """Standard output; 100 columns where it is no terminal."""
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 100)


@app.command("list")
def list_(plugin: PluginOption = None) -> None:
    """Lists tasks, methods, probes and kinds of claims."""
    from harness.registry import KINDS
    from harness.showing import items

    registry = open_registry(plugin)
    out = console()
    for kind in (*KINDS, "claim"):
        out.print(items(kind, registry.items(kind)))
        out.print()
    out.print("Next: harness describe NAME")


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="A task, method, probe or kind of claim.")],
    plugin: PluginOption = None,
    check: Annotated[bool, typer.Option("--check", help="Runs the conformance suite on it.")] = False,
) -> None:
    """Describes a task, method, probe or kind of claim: options, offers, needs, owns, source."""
    from harness.registry import KINDS
    from harness.showing import card

    registry = open_registry(plugin)
    listed = [item for kind in (*KINDS, "claim") for item in registry.items(kind)]
    found = [item for item in listed if item.name == name]
    if not found:
        from harness.options import nearest

        known = [item.name for item in listed]
        raise fail(f"NAME: found {name!r}, allowed: {', '.join(known)}{nearest(name, known)}", 2)
    out = console()
    for item in found:
        out.print(card(item))
        if check and item.kind == "claim":
            raise fail(f"--check: found {name}, a kind of claim, allowed: a task, method or probe", 2)
        if check:
            from harness.conformance import check_item

            failures = 0
            for verdict in check_item(item, registry):
                out.print(f"  {'ok  ' if verdict.ok else 'FAIL'}  {verdict.name}{verdict.detail}")
                failures += not verdict.ok
            if failures:
                raise fail(f"{name}: {failures} checks failed", 1)


@app.command()
def trial(
    task: Annotated[str, typer.Argument(help="A task, such as digits/mlp.")],
    method: Annotated[str, typer.Argument(help="A method, or a composition: 'a + b'.")],
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    probe: Annotated[list[str] | None, typer.Option("--probe", help="A probe to measure with.")] = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Runs one trial in the foreground, with neither Ray nor MLflow. Its records are those that a grid would leave.

    --set takes task.OPTION, method.OPTION (method.MEMBER.OPTION in a composition), recipe.FIELD and resources.FIELD.
    """
    from harness.foreground import run_foreground

    raise typer.Exit(run_foreground(task, method, seed, probe or [], set_ or [], open_registry(plugin), results))


@app.command()
def plan(
    grid: GridArgument,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="TRIAL", help="Where its values come from.")
    ] = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Shows what a grid holds and what of it is done: cells, reasons, statuses, an estimate of the time."""
    from harness.planning.errors import GridError
    from harness.showing import explanation, overview

    registry = open_registry(plugin)
    planned, memory = _plan(grid, set_, registry, results)
    out = console()
    if explain is not None:
        try:
            out.print(explanation(planned, explain))
        except GridError as error:
            raise fail(str(error), 2) from error
        return
    for part in overview(planned, memory, os.cpu_count() or 1):
        out.print(part)
    if planned.claims.listed:
        from harness.judging.telling import doubts

        for line in doubts(planned, registry):
            out.print(line)
    out.print(f"Next: harness run {grid}")


@app.command()
def run(
    grid: GridArgument,
    set_: SetOption = None,
    plugin: PluginOption = None,
    results: ResultsOption = RESULTS,
    tracking: TrackingOption = None,
    address: Annotated[
        str | None, typer.Option("--address", help="A Ray cluster that this machine is a node of.")
    ] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", min=1, help="CPUs to use of this machine.")] = None,
    keep_stale: Annotated[bool, typer.Option("--keep-stale", help="Keeps results of older code, with a mark.")] = False,
    commit_every: Annotated[
        float, typer.Option("--commit-every", min=0.1, metavar="SECONDS", help="How much a fault may cost a trial.")
    ] = 15.0,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Runs only what open claims need, look by look (grid: sequential).")
    ] = False,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="With --until-decided: 90s, 20m or 2h at most.")
    ] = None,
) -> None:
    """Runs what is not done of a grid, and shows a leaderboard."""
    from harness.running.driver import Options, run_plan
    from harness.running.scheduling import Infeasible, Infrastructure, Unwritable

    if address is not None and "://" in address:
        raise fail(f"--address: from elsewhere it is: harness submit {grid} --address {address} --results FOLDER", 2)
    limit = _budget(budget, until_decided)
    registry = open_registry(plugin)
    planned, memory = _plan(grid, set_, registry, results)
    options = Options(registry.plugins, tracking, address, cpus, keep_stale, commit_every)
    out = console()
    try:
        if until_decided:
            outcome = _until_decided(planned, memory, options, out, registry, limit)
        else:
            outcome = run_plan(planned, memory, options, out)
    except Infeasible as error:
        raise fail(f"{grid}: {error}", 2) from error
    except Unwritable as error:
        raise fail(f"--results: {error}", 2) from error
    except Infrastructure as error:
        raise fail(str(error), 3) from error
    except KeyboardInterrupt:
        outcome = None
    if outcome is None or outcome.interrupted:
        raise fail(f"Interrupted; nothing is lost. Next: harness run {grid}", 130)
    from harness.showing import conclusion

    if planned.claims.listed:
        from harness.judging.telling import verdicts
        from harness.judging.verdicts import judge_folder

        for part in verdicts(judge_folder(planned, memory, registry)):
            out.print(part)
        out.print()
    shown = _with_results(planned, memory) if until_decided else planned
    status = conclusion(out, shown, memory, grid, results)
    raise typer.Exit(status)


def _budget(written: str | None, until_decided: bool) -> float | None:
    """Seconds, or exit status 2."""
    import re

    if written is None:
        return None
    if not until_decided:
        raise fail("--budget: found without --until-decided, allowed: with it", 2)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", written)
    if not match:
        raise fail(f"--budget: found {written!r}, allowed: a time such as 90s, 20m or 2h", 2)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _until_decided(
    plan: Plan, memory: Results, options: Options, out: Console, registry: Registry, budget: float | None
) -> Outcome:
    """Runs look after look, and says why it ended; exit status 2 for a grid without looks."""
    from harness.running.deciding import run_until_decided

    try:
        done = run_until_decided(plan, memory, options, out, registry, budget)
    except ValueError as error:
        raise fail(f"{plan.file}: {error}", 2) from error
    out.print(f"Until decided: {done.reason}." if done.reason else "")
    return done.outcome


def _with_results(plan: Plan, memory: Results) -> Plan:
    """The plan without the trials that no look has asked for."""
    from dataclasses import replace

    found = memory.results(trial.hash for trial in plan.trials)
    return replace(plan, trials=[trial for trial in plan.trials if trial.hash in found])


def _plan(grid: Path, overrides: list[str] | None, registry: Registry, results: Path) -> tuple[Plan, Results]:
    """The plan of a grid and the results folder, or exit status 2."""
    from harness.planning.errors import GridError
    from harness.planning.grid import load_grid
    from harness.planning.plan import build_plan

    memory = _memory(results)
    try:
        return build_plan(load_grid(grid, overrides or [], registry), registry), memory
    except GridError as error:
        raise fail(str(error), 2) from error


def _memory(results: Path) -> Results:
    """The results folder, or exit status 2."""
    from harness.recording.records import RecordsError, Results

    try:
        return Results(results)
    except RecordsError as error:
        raise fail(str(error), 2) from error


@app.command()
def sync(
    grid: Annotated[str | None, typer.Argument(help="A grid's name; all of them unless given.")] = None,
    results: ResultsOption = RESULTS,
    tracking: TrackingOption = None,
) -> None:
    """Brings MLflow up to date with the results folder; without mlflow.db it is built anew."""
    from harness.options import nearest
    from harness.recording.records import RecordsError
    from harness.recording.store import TrackingError
    from harness.recording.tracking import sync as project

    memory = _memory(results)
    folder = memory.folder / "grids"
    known = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if grid is not None and grid not in known:
        raise fail(f"GRID: found {grid!r}, allowed: {', '.join(known) or 'none yet'}{nearest(grid, known)}", 2)
    if not known:
        raise fail(f"--results: {memory.folder} holds no grid; run one first: harness run GRID", 2)
    pending = 0
    for name in [grid] if grid else known:
        try:
            report = project(memory, name, tracking)
        except (TrackingError, RecordsError) as error:
            raise fail(f"{name}: {error}", 3) from error
        pending += report.pending
        typer.echo(f"{name}: {report}")
    if pending:
        raise fail("MLflow is not up to date; nothing is lost. Next: harness sync", 3)
    typer.echo(f"Next: harness ui --results {results}")


@app.command()
def ui(
    results: ResultsOption = RESULTS,
    tracking: TrackingOption = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
) -> None:
    """Opens MLflow on the results folder, for this machine alone."""
    from harness.recording.tracking import ui_command

    memory = _memory(results)
    if tracking is None and not (memory.folder / "mlflow.db").exists():
        raise fail(f"--results: {memory.folder} holds no mlflow.db; make it with: harness sync", 2)
    typer.echo(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    command = ui_command(memory, tracking, port)
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
    """Says what changed between two grids, results folders or versions of the code, with a verdict per cell."""
    from harness.judging import compare as comparing
    from harness.recording.records import RecordsError

    memory = _memory(results)
    registry = open_registry(plugin)
    if direction not in ("", "min", "max"):
        raise fail(f"--direction: found {direction!r}, allowed: min, max", 2)
    known = {item.name: (item.metric, item.direction) for item in registry.items("task")}
    try:
        sides = [comparing.find_side(text, memory) for text in (first, second)]
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
    """Writes the report of a grid: verdicts, tables, figures; as one page, or as Markdown, CSV or Parquet.

    The page is also kept in MLflow, on the parent run.
    """
    from harness.judging.report import FORMATS, write_report
    from harness.recording.records import RecordsError

    if form not in FORMATS:
        from harness.options import nearest

        raise fail(f"--format: found {form!r}, allowed: {', '.join(FORMATS)}{nearest(form, list(FORMATS))}", 2)
    registry = open_registry(plugin)
    planned, memory = _plan(_grid_file(grid, _memory(results)), set_, registry, results)
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
    """The file of a grid: itself, or as it was last submitted."""
    from harness.recording.grids import submissions

    if Path(grid).is_file() or not (past := submissions(memory, grid)):
        return Path(grid)
    return past[-1].folder / "grid.yaml"


def _project_report(memory: Results, name: str, tracking: str | None) -> None:
    """Puts the report into MLflow, where there is one. The file is there whatever becomes of that."""
    from harness.recording.grids import submissions
    from harness.recording.records import RecordsError
    from harness.recording.store import TrackingError
    from harness.recording.tracking import sync as project

    if not submissions(memory, name) or (tracking is None and not (memory.folder / "mlflow.db").exists()):
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
    """Shows what the results folder holds that nothing needs any more, and frees it when told to."""
    from harness.recording.garbage import garbage
    from harness.recording.records import RecordsError
    from harness.showing import rubbish

    memory = _memory(results)
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


@app.command()
def doctor(
    plugin: PluginOption = None,
    results: ResultsOption = RESULTS,
    tracking: TrackingOption = None,
    address: Annotated[
        str | None, typer.Option("--address", help="A Ray cluster; one is started here unless given.")
    ] = None,
) -> None:
    """Tries everything that a grid will need, and says what to do about what is wrong."""
    from harness.running.doctor import examine

    states = set()
    out = console()
    for finding in examine(_memory(results), open_registry(plugin), tracking, address):
        states.add(finding.state)
        out.print(f"{finding.state:<8} {finding.name}: {finding.detail}")
        if finding.advice:
            out.print(f"         {finding.advice}")
    if "wrong" in states:
        raise fail("doctor: a grid would not run as things are", 3)
    out.print("Next: harness run GRID")


@app.command()
def submit(
    grid: GridArgument,
    address: Annotated[str, typer.Option("--address", help="The cluster's dashboard: http://HEAD:8265.")],
    results: Annotated[str, typer.Option("--results", help="A folder that the head and all workers share.")],
    tracking: Annotated[str, typer.Option("--tracking", help="An MLflow tracking URI that the head reaches.")],
    set_: SetOption = None,
    plugin: PluginOption = None,
    driver_label: Annotated[
        str | None, typer.Option("--driver-label", metavar="NAME=VALUE", help="Where the driver runs; else the head.")
    ] = None,
    keep_stale: Annotated[bool, typer.Option("--keep-stale", help="Keeps results of older code, with a mark.")] = False,
    commit_every: Annotated[float, typer.Option("--commit-every", min=0.1, metavar="SECONDS")] = 15.0,
) -> None:
    """Runs a grid on a cluster from elsewhere, and shows its output; Ctrl-C leaves it running."""
    from harness.planning.errors import GridError
    from harness.planning.grid import load_grid
    from harness.planning.plan import build_plan
    from harness.running import submission
    from harness.running.scheduling import Infrastructure

    options = ["--commit-every", str(commit_every), *(["--keep-stale"] if keep_stale else [])]
    target = submission.Target(address, results, tracking, driver_label, options)
    registry = open_registry(plugin)
    stop = f"harness stop {grid} --address {address}"
    try:
        target.check()
        planned = build_plan(load_grid(grid, set_ or [], registry), registry)
        client = submission.connect(address)
        job = submission.submit(client, planned, registry.plugins, target, typer.echo)
        status = submission.follow(client, job, lambda text: typer.echo(text, nl=False))
    except (GridError, submission.BadSubmission) as error:
        raise fail(str(error), 2) from error
    except Infrastructure as error:
        raise fail(str(error), 3) from error
    except KeyboardInterrupt as interrupt:
        raise fail(f"It goes on without this terminal. The same command follows it; {stop} ends it", 130) from interrupt
    raise typer.Exit(status)


@app.command()
def stop(
    grid: Annotated[str, typer.Argument(metavar="GRID", help="A grid file, or a grid's name.")],
    address: Annotated[
        str | None, typer.Option("--address", help="The dashboard of the cluster that it was submitted to.")
    ] = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Ends a running grid cleanly: its trials commit, and the next run goes on from there."""
    from harness.planning.errors import GridError
    from harness.planning.reading import read_draft
    from harness.running import stopping, submission
    from harness.running.scheduling import Infrastructure

    try:
        name = str(read_draft(Path(grid)).content.get("name")) if Path(grid).is_file() else grid
        if address is not None:
            stopped = stopping.stop_submitted(submission.connect(address), name)
        else:
            stopped = [name] if stopping.stop_local(_memory(results), name) else []
    except (GridError, submission.BadSubmission) as error:
        raise fail(str(error), 2) from error
    except Infrastructure as error:
        raise fail(str(error), 3) from error
    typer.echo(f"Stopped: {', '.join(stopped)}" if stopped else f"Grid {name} is not running there.")


def main() -> None:
    """The entry point of the `harness` command."""
    app()


if __name__ == "__main__":
    main()
