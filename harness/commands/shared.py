"""What every command is made of: the application, the options that several take, and what they open first."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from harness.planning.plan import Plan
    from harness.recording.results import Results
    from harness.registry import Registry

app = typer.Typer(
    name="harness",
    help="Benchmark training methods: tasks x methods x seeds, every claim with its evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    from importlib.metadata import version

    if asked:
        typer.echo(f"harness {version('training-harness')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Shows the version and ends.")
    ] = False,
) -> None:
    pass


ResultsOption = Annotated[
    Path, typer.Option("--results", envvar="HARNESS_RESULTS", help="The folder that remembers everything computed.")
]
PluginOption = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A Python file that registers tasks, methods, probes or kinds of claims."),
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


def again(grid: Path, overrides: list[str] | None, plugins: list[Path] | None, results: Path) -> str:
    """What follows the name of the next command on the same grid: the grid, and the options that were given here."""
    words = [str(grid), *(word for file in plugins or [] for word in ("--plugin", str(file)))]
    words += [word for text in overrides or [] for word in ("--set", text)]
    words += [] if results == RESULTS else ["--results", str(results)]
    return shlex.join(words)


def browse(tracking: str | None, results: Path) -> str:
    """What shows every run in MLflow: a command on the results folder or a database, or the address of a server."""
    from harness.recording.grids import without_password

    shown = without_password(tracking or "")
    if shown.startswith("http"):
        return f"open {shown} in a browser"
    words = ["--tracking", shown] if shown else []
    words += [] if results == RESULTS else ["--results", str(results)]
    return shlex.join(["harness", "ui", *words])


def open_registry(plugins: list[Path] | None) -> Registry:
    """What is registered, or exit status 2 for a `--plugin` that does not load; one that is installed is left out and named."""
    from harness.registry import Registry, RegistryError

    try:
        registry = Registry(plugins or [])
    except RegistryError as error:
        raise fail(str(error), 2) from error
    asked = {f"plugin {file.name}": file for file in registry.plugins}
    for origin, trouble in registry.broken.items():
        if origin in asked:
            raise fail(f"--plugin: {asked[origin]} does not load ({trouble})", 2)
        typer.echo(f"{origin}: left out, it does not load ({trouble})", err=True)
    return registry


def console() -> Console:
    """Standard output; where it is no terminal, as wide as COLUMNS says, or 100."""
    from harness.showing import Terminal

    width = None if sys.stdout.isatty() else shutil.get_terminal_size((100, 24)).columns
    return Terminal(highlight=False, markup=False, width=width)


def open_plan(grid: Path, overrides: list[str] | None, registry: Registry, results: Path) -> tuple[Plan, Results]:
    """The plan of a grid and the results folder, or exit status 2."""
    from harness.planning.errors import GridError
    from harness.planning.grid import load_grid
    from harness.planning.plan import build_plan

    memory = open_results(results)
    try:
        return build_plan(load_grid(grid, overrides or [], registry), registry), memory
    except GridError as error:
        raise fail(str(error), 2) from error


def name_of(grid: str) -> str:
    """The name of a grid that is given by its file or by its name; exit status 2 for a file without one."""
    from harness.planning.errors import GridError
    from harness.planning.reading import is_file, read_name

    try:
        return read_name(Path(grid)) if is_file(Path(grid)) else grid
    except GridError as error:
        raise fail(str(error), 2) from error


def check_kept(memory: Results, name: str) -> None:
    """Exit status 2 for the name of a grid that never ran into these results."""
    from harness.options import nearest

    known = memory.grids()
    if name not in known:
        raise fail(f"GRID: found {name!r}, allowed: {', '.join(known) or 'none yet'}{nearest(name, known)}", 2)


def check_tracking(tracking: str | None) -> None:
    """Exit status 2 for an address that MLflow cannot take."""
    from harness.recording.store import TrackingError, scheme_of

    try:
        if tracking is not None:
            scheme_of(tracking)
    except TrackingError as error:
        raise fail(str(error), 2) from error


def open_results(results: Path) -> Results:
    """The results folder, or exit status 2."""
    from harness.recording.records import RecordsError
    from harness.recording.results import Results

    try:
        return Results(results)
    except RecordsError as error:
        raise fail(str(error), 2) from error
