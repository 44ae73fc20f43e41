"""`harness trial`: one trial in the foreground, with nothing else around it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status as Spinner

from harness.planning.errors import GridError
from harness.planning.grid import check_grid
from harness.planning.plan import PlannedTrial, build_plan
from harness.planning.reading import Draft, parse_override
from harness.recording.attempts import Attempt
from harness.recording.records import Locked, RecordsError, Result, Status
from harness.recording.results import Results
from harness.registry import Registry
from harness.resources import devices, thread_variables
from harness.seconds import duration

SECTIONS = ("task", "method", "recipe", "resources")
ALONE = "stacked"
"""What is set without a section."""


def plan_trial(
    task: str, method: str, seed: int, probes: Sequence[str], overrides: Sequence[str], registry: Registry
) -> PlannedTrial:
    """The trial that a grid with this one cell and seed would hold.

    Raises:
        GridError: if something is unknown or does not fit, or the method does not fit the task.
    """
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    stacked: Any = False
    for override in overrides:
        keys, value = parse_override(override)
        if keys == [ALONE]:
            stacked = value
            continue
        if keys[0] not in SECTIONS or len(keys) not in (2, 3) or (len(keys) == 3 and keys[0] != "method"):
            allowed = "task.OPTION, method.OPTION, method.MEMBER.OPTION, recipe.FIELD, resources.FIELD or stacked"
            raise GridError("--set", ".".join(keys), f"found {override!r}, allowed: {allowed}")
        section = sections[keys[0]] if len(keys) == 2 else sections["method"].setdefault(keys[1], {})
        if not isinstance(section, dict):
            raise GridError("--set", ".".join(keys), f"found {keys[1]}={section!r} beside it, allowed: one of the two")
        section[keys[-1]] = value
    content: dict[str, Any] = {
        "name": "trial",
        "tasks": [{task: sections["task"]} if sections["task"] else task],
        "methods": [{method: sections["method"]} if sections["method"] else method],
        "seeds": [seed],
        "probes": list(probes),
        "stacked": stacked,
    }
    if sections["recipe"]:
        content["recipes"] = [{"set": sections["recipe"]}]
    if sections["resources"]:
        content["resources"] = sections["resources"]
    plan = build_plan(check_grid(Draft("harness trial", content), registry), registry)
    if len(plan.trials) != 1:
        raise GridError("harness trial", "--set", f"found {len(plan.trials)} trials, allowed: one; axes are for grids")
    if limited := {"memory", "time"} & sections["resources"].keys():
        name = min(limited)
        found = f"resources.{name}: found {sections['resources'][name]!r}, allowed: without it"
        raise GridError("harness trial", "--set", f"{found}; limits are for grids, and Ctrl-C ends a trial here")
    ranks = plan.trials[0].resources.ranks
    if ranks > 1:
        raise GridError("harness trial", "--set", f"resources.ranks: found {ranks}, allowed: 1; several are for grids")
    return plan.trials[0]


def run_foreground(
    task: str,
    method: str,
    seed: int,
    probes: Sequence[str],
    overrides: Sequence[str],
    registry: Registry,
    results: Path,
) -> int:
    """Runs one trial, or goes on with it, and prints one `name value` line per final metric; returns the exit status."""
    try:
        memory = Results(results)
        planned = plan_trial(task, method, seed, probes, overrides, registry)
    except (GridError, RecordsError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{planned.cell} · seed {seed} ({planned.hash})", file=sys.stderr)
    known = memory.trial(planned.hash).result()
    goes_on = known is not None and known.status is Status.SCREENED
    if known is not None and known.status.done and known.code == planned.code and not goes_on:
        print(f"it is done already: what follows are its records in {memory.folder}", file=sys.stderr)
        return conclude(known)
    try:
        return conclude(_run(planned, registry, memory))
    except GridError as error:
        print(error, file=sys.stderr)
        return 2
    except (Locked, RecordsError) as error:
        print(error, file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last commit", file=sys.stderr)
        return 130


def conclude(result: Result) -> int:
    """The final metrics of a trial, or what went wrong."""
    for name, value in sorted(result.metrics.items()):
        print(f"{name} {value:.10g}")
    if result.status == Status.FINISHED:
        return 0
    print(f"{result.status}: {result.reason}\n{result.error}".rstrip(), file=sys.stderr)
    return 0 if result.status.good else 1


def _run(planned: PlannedTrial, registry: Registry, memory: Results) -> Result:
    os.environ |= thread_variables(planned.spec.threads)  # before torch starts its pool
    if planned.spec.device == "cuda" and "cuda" not in devices():
        told = (
            f"resources.gpus: found {planned.resources.gpus:g}, allowed: 0; torch sees no GPU here, see harness doctor"
        )
        raise GridError("harness trial", "--set", told)
    from harness.training.loop import Interrupted
    from harness.training.together import run_stack
    from harness.training.trial import Course, run_trial

    length = planned.spec.length
    with Attempt(memory.folder, planned.hash, planned.spec.to_json(), planned.code, wait=1.0) as attempt:
        if attempt.state.step:
            print(f"going on from step {attempt.state.step} of {length}", file=sys.stderr)
        with _progress(length) as halt:
            try:
                if not planned.spec.stacked:
                    return run_trial(planned.spec, registry, attempt, halt=halt)
                course = Course(planned.spec, attempt, {})
                for trouble in run_stack([course], registry, halt=halt).values():
                    raise trouble
                assert course.result is not None
                return course.result
            except Interrupted:
                raise KeyboardInterrupt from None


@contextmanager
def _progress(length: int) -> Iterator[Callable[[int], bool]]:
    """A line on a terminal with the step and the time left; Ctrl-C asks for a stop at the next step, and twice stops at once."""
    asked = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        if asked:  # a step that never ends
            give_back()
            raise KeyboardInterrupt
        asked = True

    def give_back() -> None:
        for number, handler in outer.items():
            signal.signal(number, handler)

    started, first, shown = time.monotonic(), -1, 0.0
    outer = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    with Spinner("starting", console=Console(stderr=True)) as line:

        def halt(step: int) -> bool:
            nonlocal first, shown
            now = time.monotonic()
            first = step - 1 if first < 0 else first
            if now - shown > 0.25:
                shown = now
                left = (now - started) / (step - first) * (length - step)
                line.update(f"step {step} of {length}, about {duration(left)} left")
            return asked

        try:
            yield halt
        finally:
            give_back()
