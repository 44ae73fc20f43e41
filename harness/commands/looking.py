"""Commands before a grid is run: what there is, one trial of it, what a grid comes to, and whether the machine is well."""

from __future__ import annotations

import os
from typing import Annotated

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
    console,
    fail,
    open_plan,
    open_registry,
    open_results,
)


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="tasks, methods, probes or claims; all of them unless given.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Lists tasks, methods, probes and kinds of claims."""
    from harness.options import nearest
    from harness.registry import KINDS
    from harness.showing import items

    kinds = {f"{name}s": name for name in (*KINDS, "claim")}
    if kind is not None and kind not in kinds:
        raise fail(f"KIND: found {kind!r}, allowed: {', '.join(kinds)}{nearest(kind, list(kinds))}", 2)
    registry = open_registry(plugin)
    out = console()
    for listed in [kinds[kind]] if kind else kinds.values():
        out.print(items(listed, registry.items(listed)))
        out.print()
    out.print("Next: harness describe NAME")


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="A task, method, probe or kind of claim.")],
    plugin: PluginOption = None,
    check: Annotated[bool, typer.Option("--check", help="Runs the conformance suite on it.")] = False,
    device: Annotated[str, typer.Option("--device", help="Where --check runs it: cpu or cuda.")] = "cpu",
) -> None:
    """Describes a task, method, probe or kind of claim. Options, offers, needs, owns, source."""
    from harness.registry import KINDS
    from harness.resources import devices
    from harness.showing import card

    registry = open_registry(plugin)
    listed = [item for kind in (*KINDS, "claim") for item in registry.items(kind)]
    found = [item for item in listed if item.name == name]
    if not found:
        from harness.options import nearest, offered

        known = [item.name for item in listed]
        raise fail(f"NAME: found {name!r}, allowed: {offered(name, known, 'harness list')}{nearest(name, known)}", 2)
    if device != "cpu" and device not in (allowed := devices()):
        raise fail(
            f"--device: found {device!r}, allowed: {' or '.join(allowed)} on this machine; see harness doctor", 2
        )
    out = console()
    for item in found:
        out.print(card(item))
        if check and item.kind == "claim":
            raise fail(f"--check: found {name}, a kind of claim, allowed: a task, method or probe", 2)
        if check:
            from harness.conformance import check_item

            if device == "cpu":
                os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that sees a GPU cannot fork ranks that train
            told: set[str] = set()
            done = failures = 0
            for verdict in check_item(item, registry, device):
                detail = " (as above)" if verdict.detail in told else verdict.detail
                out.print(f"  {'ok  ' if verdict.ok else 'FAIL'}  {verdict.name}{detail}")
                told |= {verdict.detail} - {""}
                done, failures = done + 1, failures + (not verdict.ok)
            if failures:
                raise fail(
                    f"{name}: {failures} of {done} checks failed; what each compares: docs/add-a-{item.kind}.md", 1
                )
            out.print(f"{name}: all {done} checks passed")


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

    --set takes task.OPTION, method.OPTION (method.MEMBER.OPTION in a composition), recipe.FIELD, resources.FIELD and stacked.
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
    """Shows what a grid holds and what of it is done. Cells, reasons, statuses, an estimate of the time."""
    from harness.planning.errors import GridError
    from harness.planning.survey import survey
    from harness.resources import this_machine
    from harness.showing import explanation, overview

    registry = open_registry(plugin)
    planned, memory = open_plan(grid, set_, registry, results)
    out = console()
    if explain is not None:
        try:
            out.print(explanation(planned, explain))
        except GridError as error:
            raise fail(str(error), 2) from error
        return
    state = survey(planned, memory)
    for part in overview(planned, state, this_machine()):
        out.print(part)
    if planned.claims.listed:
        from harness.judging.history import history
        from harness.judging.telling import doubts

        for line in doubts(planned, registry, history(memory, planned.name)):
            out.print(line)
    line = again(grid, set_, plugin, results)
    out.print(f"Where values come from: harness plan {line} --explain {planned.trials[0].hash[:8]}", soft_wrap=True)
    out.print(f"Next: harness {'run' if state.to_run else 'report'} {line}", soft_wrap=True)


@app.command()
def doctor(
    plugin: PluginOption = None,
    results: ResultsOption = RESULTS,
    tracking: TrackingOption = None,
    address: Annotated[
        str | None, typer.Option("--address", help="A Ray cluster; one is started here unless given.")
    ] = None,
) -> None:
    """Tries everything that a grid will need. Says what to do about what is wrong."""
    from harness.running.doctor import examine

    states = set()
    out = console()
    for finding in examine(open_results(results), plugin or [], tracking, address):
        states.add(finding.state)
        out.print(f"{finding.state:<8} {finding.name}: {finding.detail}")
        if finding.advice:
            out.print(f"         {finding.advice}")
    if "wrong" in states:
        raise fail("doctor: a grid would not run as things are", 3)
    out.print("Next: harness run GRID")
