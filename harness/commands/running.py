"""Commands that run a grid, here or on a cluster, and end it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands.shared import (
    RESULTS,
    GridArgument,
    PluginOption,
    ResultsOption,
    SetOption,
    TrackingOption,
    again,
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

NodeTypeOption = Annotated[
    list[str] | None,
    typer.Option("--node-type", metavar="CPU=8,GPU=1", help="What nodes have that an autoscaler can add; repeatable."),
]
KeepStaleOption = Annotated[bool, typer.Option("--keep-stale", help="Keeps results of older code, with a mark.")]
RetryFailedOption = Annotated[
    bool, typer.Option("--retry-failed", help="Computes failed trials again: what failed was not the code.")
]
CommitEveryOption = Annotated[
    float, typer.Option("--commit-every", min=0.1, metavar="SECONDS", help="How much a fault may cost a trial.")
]

if TYPE_CHECKING:
    from rich.console import Console

    from harness.planning.plan import Plan
    from harness.recording.results import Results
    from harness.registry import Registry
    from harness.running.driver import Options
    from harness.running.scheduling import Outcome


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
    node_type: NodeTypeOption = None,
    cpus: Annotated[int | None, typer.Option("--cpus", min=1, help="CPUs to use of this machine.")] = None,
    keep_stale: KeepStaleOption = False,
    retry_failed: RetryFailedOption = False,
    commit_every: CommitEveryOption = 15.0,
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
    check_tracking(tracking)
    if cpus is not None and address is not None:
        raise fail(
            "--cpus: found with --address, allowed: without it; a cluster's nodes say how many CPUs they have", 2
        )
    if node_type and address is None:
        raise fail("--node-type: found without --address, allowed: with the address of a cluster", 2)
    if retry_failed and until_decided:
        raise fail("--retry-failed: found with --until-decided, allowed: in a run before it", 2)
    types = _node_types(node_type)
    limit = _budget(budget, until_decided)
    line = again(grid, set_, plugin, results)
    registry = open_registry(plugin)
    planned, memory = open_plan(grid, set_, registry, results)
    options = Options(registry.plugins, tracking, address, cpus, keep_stale, retry_failed, commit_every, types)
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
        raise fail(f"Interrupted; nothing is lost. Next: harness run {line}", 130)
    from harness.running.staging import SUBMITTED
    from harness.showing import conclusion, where_to_look

    if planned.claims.listed:
        from harness.judging.telling import verdicts
        from harness.judging.verdicts import judge_folder

        for part in verdicts(judge_folder(planned, memory, registry)):
            out.print(part)
        out.print()
    shown = _with_results(planned, memory) if until_decided else planned
    status = conclusion(out, shown, memory, line)
    if SUBMITTED not in os.environ:
        where_to_look(out, line, browse(tracking, results))
    raise typer.Exit(status)


def _node_types(written: list[str] | None) -> list[dict[str, float]]:
    """What each kind of node has, or exit status 2."""
    from harness.running.stalling import node_type

    try:
        return [node_type(text) for text in written or []]
    except ValueError as error:
        raise fail(f"--node-type: {error}", 2) from error


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
    node_type: NodeTypeOption = None,
    keep_stale: KeepStaleOption = False,
    retry_failed: RetryFailedOption = False,
    commit_every: CommitEveryOption = 15.0,
) -> None:
    """Runs a grid on a cluster from elsewhere. Shows its output; Ctrl-C leaves it running."""
    from harness.planning.errors import GridError
    from harness.planning.grid import load_grid
    from harness.planning.plan import build_plan
    from harness.running import submission
    from harness.running.scheduling import Infrastructure
    from harness.showing import where_to_look

    _node_types(node_type)
    options = ["--commit-every", str(commit_every), *(["--keep-stale"] if keep_stale else [])]
    options += ["--retry-failed"] if retry_failed else []
    options += [f"--node-type={text}" for text in node_type or []]
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
    if status in (0, 1):
        where_to_look(console(), again(grid, set_, plugin, Path(results)), browse(tracking, RESULTS))
    raise typer.Exit(status)


@app.command()
def stop(
    grid: Annotated[str, typer.Argument(metavar="GRID", help="A grid file, or a grid's name.")],
    address: Annotated[
        str | None, typer.Option("--address", help="The dashboard of the cluster that it was submitted to.")
    ] = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Ends a running grid cleanly. Its trials commit, and the next run goes on from there."""
    from harness.running import stopping, submission
    from harness.running.scheduling import Infrastructure

    name = name_of(grid)
    try:
        if address is not None:
            stopped = stopping.stop_submitted(submission.connect(address), name)
        else:
            memory = open_results(results)
            if name == grid:
                check_kept(memory, name)
            stopped = [name] if stopping.stop_local(memory, name) else []
    except submission.BadSubmission as error:
        raise fail(str(error), 2) from error
    except Infrastructure as error:
        raise fail(str(error), 3) from error
    typer.echo(f"Stopped: {', '.join(stopped)}" if stopped else f"Grid {name} is not running there.")
