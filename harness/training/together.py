"""`run_stack`: several seeds of one cell in one process, each with records, hooks, evaluations and a result of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from harness.identity import TrialSpec
from harness.probe import Probe
from harness.recording.records import RecordsError
from harness.registry import Registry
from harness.training import loop
from harness.training.loop import Commits, Interrupted
from harness.training.stacking import Stack
from harness.training.state import Training
from harness.training.trial import Course, settings


class _Apart(Exception):
    """What all seeds share has raised: whose fault it is shows when each goes on alone."""


def run_stack(
    courses: Sequence[Course],
    registry: Registry,
    *,
    commit_every: float = 15.0,
    halt: Callable[[int], bool] = lambda step: False,
) -> dict[str, RecordsError]:
    """Runs trials of one cell to their ends as one computation, each from its last commit.

    Trials that stand at different steps are brought together: those behind go first. A trial that diverges, is screened or
    whose code raises leaves the stack with its own status; the numbers of the others do not change, since those of a seed
    depend neither on the width nor on its neighbours. Where what all of them share raises, they go on one by one.

    Args:
        courses: the trials, their attempts entered.
        commit_every: seconds between commits.
        halt: told of each step taken; once it answers true, the trials commit and stop.

    Returns:
        For trials whose records could not be written, why; by hash. All others have their result.

    Raises:
        Interrupted: if `halt` answered true; everything so far is committed.
        ValueError: if the trials are not of one cell.
    """
    _check_one_cell([course.spec for course in courses])
    runner = _Runner(registry, commit_every, halt, len(courses))
    with settings(courses[0].spec):
        runner.set_up(courses)
        try:
            while standing := runner.standing(courses):
                runner.go(*_behind(standing))
        except _Apart:
            for course in runner.standing(courses):
                course.attempt.rewind()
                runner.set_up([course])
                while runner.standing([course]):
                    runner.go(*_behind([course]))
    return runner.trouble


def _check_one_cell(specs: Sequence[TrialSpec]) -> None:
    shared = [(s.task, s.task_options, s.methods, s.recipe, s.probes, s.threads, s.device, s.stacked) for s in specs]
    if not all(content == shared[0] for content in shared) or not specs[0].stacked:
        raise ValueError("stack: found trials of several cells, allowed: stacked seeds of one cell")


def _behind(courses: Sequence[Course]) -> tuple[list[Course], int]:
    """The trials that are furthest behind, and the step at which they meet the next ones, or end."""
    steps = [_training(course).state.step for course in courses]
    first = min(steps)
    goal = min((step for step in steps if step > first), default=_training(courses[0]).state.recipe.length)
    return [course for course, step in zip(courses, steps, strict=True) if step == first], goal


def _training(course: Course) -> Training:
    assert course.training is not None
    return course.training


class _Runner:
    def __init__(self, registry: Registry, commit_every: float, halt: Callable[[int], bool], width: int) -> None:
        self._registry, self._halt, self._width = registry, halt, width
        self._commits = Commits(commit_every)
        self.trouble: dict[str, RecordsError] = {}

    def standing(self, courses: Iterable[Course]) -> list[Course]:
        """The trials that go on."""
        return [course for course in courses if course.result is None and course.spec.hash not in self.trouble]

    def guard(self, course: Course, call: Callable[[], object]) -> None:
        """Calls a trial's own code, if the trial still stands; what it raises ends that trial alone."""
        if not self.standing([course]):
            return
        try:
            with course.guarded():
                call()
        except RecordsError as error:
            self.trouble[course.spec.hash] = error

    def set_up(self, courses: Sequence[Course]) -> None:
        """Puts each trial where its last commit left it."""
        for course in courses:
            self.guard(course, partial(self._set_up, course))

    def _set_up(self, course: Course) -> None:
        training = course.set_up(self._registry)
        training.width = self._width
        loop.begin(training)

    def go(self, courses: list[Course], goal: int) -> None:
        """Runs trials that stand at one step, until they come to the goal or one of them leaves.

        Raises:
            _Apart: if what they share has raised, and there are several.
            Interrupted: if they were asked to stop.
        """
        trainings = [_training(course) for course in courses]
        state, length = trainings[0].state, trainings[0].state.recipe.length
        stacks: list[Stack] = []
        self._shared(
            courses, lambda: stacks.append(Stack(trainings, lambda seed, call: self.guard(courses[seed], call)))
        )
        while stacks and state.step < goal and self.standing(courses) == courses:
            self._step(stacks[0], courses)
            halted = self._halt(state.step)
            if self._commits.due(halted):
                for course in courses:
                    self.guard(course, partial(loop.commit, _training(course)))
            if halted and state.step < length:
                raise Interrupted(f"stopped at step {state.step} of {length}")
        if state.step == length:
            for course in courses:
                self.guard(course, partial(_finish, course))

    def _step(self, stack: Stack, courses: list[Course]) -> None:
        """One step of all, and for each trial what comes before and after it."""
        probes: list[dict[str, Probe]] = [{} for _ in courses]
        for course, due in zip(courses, probes, strict=True):
            self.guard(course, partial(_before_step, course, due))
        started = time.perf_counter()
        self._shared(courses, lambda: stack.advance(measured=any(probes)))
        share = (time.perf_counter() - started) / len(courses)
        for course, due in zip(courses, probes, strict=True):
            _training(course).clock.seconds += share  # the time of a step counts for each trial by its share
            self.guard(course, partial(loop.after_step, _training(course), due))

    def _shared(self, courses: list[Course], call: Callable[[], object]) -> None:
        """Calls what serves all trials. What it raises ends a trial that is alone, and takes several apart."""
        if len(courses) == 1:
            self.guard(courses[0], call)
            return
        try:
            call()
        except Exception as error:
            raise _Apart from error


def _before_step(course: Course, due: dict[str, Probe]) -> None:
    due |= loop.before_step(_training(course))


def _finish(course: Course) -> None:
    course.finish(loop.finish(_training(course)))
