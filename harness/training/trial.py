"""`run_trial`: the one function that a worker runs, and that `harness trial` runs in the foreground."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harness.activations import observe
from harness.composition import Composition, objection
from harness.controls import Control, build_member
from harness.identity import TrialSpec
from harness.method import Method, Ranks, State
from harness.recording.attempts import Attempt
from harness.recording.environment import environment, gpu
from harness.recording.records import ACTIONS, WEIGHTS, RecordsError, Result, Status, TrialRecords, storage
from harness.registry import Registry
from harness.resources import REPEATABLE_CUBLAS
from harness.screening import Screen
from harness.streams import Streams
from harness.task import FederatedWorkload, Task
from harness.training import federation, loop, stepping
from harness.training.loop import Interrupted, Screened
from harness.training.ranks import PeerLost
from harness.training.starting import branch, load_weights, taken_start
from harness.training.state import Training
from harness.training.stepping import Diverged


def run_trial(
    spec: TrialSpec,
    registry: Registry,
    attempt: Attempt,
    *,
    values: dict[str, Any] | None = None,
    ranks: Ranks | None = None,
    keep: Sequence[str] = (),
    screen: Screen | None = None,
    commit_every: float = 15.0,
    halt: Callable[[int], bool] = lambda step: False,
) -> Result:
    """Runs a trial to its end, from its last commit if it has one, and leaves its result in the records.

    What an author's code raises becomes the trial's status, never an exception.

    Args:
        spec: what the trial is.
        attempt: where its records go, entered.
        values: what it takes from the trials that it requires, by path.
        ranks: the ranks of a data-parallel trial.
        keep: checkpoints to keep for other trials: `checkpoint@SHARE`, or `weights`.
        screen: the early-stopping rule that may end it.
        commit_every: seconds between commits; the numbers do not depend on it.
        halt: told of each step taken; once it answers true, the trial commits and stops.

    Raises:
        Interrupted: if `halt` answered true.
        PeerLost: if another of its ranks is gone.
        RecordsError: if the records cannot be written.
    """
    course = Course(spec, attempt, values or {}, keep, screen, ranks or Ranks())
    return run_alone(course, registry, commit_every=commit_every, halt=halt)


def run_alone(
    course: Course,
    registry: Registry,
    *,
    commit_every: float,
    halt: Callable[[int], bool],
) -> Result:
    """Runs a trial that is no part of a stack to its end, as `run_trial`."""
    with settings(course.spec), course.guarded():
        training = course.set_up(registry)
        _agree(training)
        federated = isinstance(training.workload, FederatedWorkload)
        advance = federation.advance if federated else loop.advance
        course.finish(loop.train(training, advance, commit_every=commit_every, halt=halt))
    assert course.result is not None
    return course.result


def _agree(training: Training) -> None:
    """Waits for all ranks to be set up.

    Raises:
        PeerLost: if they do not stand at one step: one has read a commit that another had not.
    """
    state = training.state
    if state.ranks.world > 1:
        step = torch.tensor(float(state.step), device=next(state.model.parameters()).device)
        if float(state.reduce(step)) != state.step:
            raise PeerLost(f"rank {state.ranks.index} stands at step {state.step}, and another does not")


@dataclass
class Course:
    """One trial from its setting up to its result, alone or in a stack."""

    spec: TrialSpec
    attempt: Attempt
    values: dict[str, Any]
    """What it takes from the trials that it requires, by path."""
    keep: Sequence[str] = ()
    screen: Screen | None = None
    ranks: Ranks = field(default_factory=Ranks)
    """The ranks of a data-parallel trial."""
    training: Training | None = None
    result: Result | None = None

    def set_up(self, registry: Registry) -> Training:
        """Builds the trial and puts it where its last commit left it."""
        self.attempt.tell("started", **self._setting(), seed=self.spec.seed_label)
        self.training = set_up(self.spec.with_values(self.values), registry, self.attempt, self.ranks)
        self.training.keep, self.training.screen = self.keep, self.screen
        if step := self.training.state.step:
            self.attempt.tell("resumed", step=step)
        return self.training

    def _setting(self) -> dict[str, Any]:
        """What the numbers rest on beside the trial's content."""
        asked = {"threads": self.spec.threads, "device": self.spec.device, "ranks": self.ranks.world}
        return environment() | asked | (gpu() if self.spec.device == "cuda" else {})

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What an author's code raises inside ends the trial with a status.

        Raises:
            Interrupted: if the trial was asked to stop.
            PeerLost: if another of its ranks is gone.
            RecordsError: if the records cannot be written.
        """
        try:
            yield
        except (Interrupted, PeerLost, RecordsError, KeyboardInterrupt):
            raise
        except Exception as error:
            self._end(*_status(error))

    def finish(self, metrics: dict[str, float]) -> None:
        """Keeps the pictures of the selected model and of the probes, and leaves the result of a finished trial."""
        training = self.training
        assert training is not None
        with observe(training.state.model):
            pictures = training.workload.pictures(training.state.model)
        for probe in training.probes.values():
            pictures |= probe.pictures()
        for name, picture in pictures.items():
            self.attempt.keep(f"pictures/{name}", picture.encode())
        self._end(Status.FINISHED, metrics=metrics)

    def _end(self, status: Status, reason: str = "", error: str = "", metrics: dict[str, float] | None = None) -> None:
        training, attempt, spec = self.training, self.attempt, self.spec
        screened = status is Status.SCREENED
        if screened:
            metrics = {}
            for record in attempt.trial.records():
                metrics |= record.get("metrics", {})
        with storage(attempt.trial.folder):
            kept = [name for name in self.keep if attempt.trial.kept(name).exists()]
        result = Result(
            hash=spec.hash,
            status=status,
            code=attempt.code,
            metrics=metrics or {},
            weights=training.digest if training else "",
            values=self.values,
            steps=training.state.step if training else 0,
            attempt=attempt.state.attempt,
            started=attempt.state.started,
            ended=time.time(),
            reason=reason,
            error=error,
            environment=self._setting(),
            screening=self.screen.mark if screened and self.screen else "",
            kept=kept,
        )
        level = "error" if status in (Status.FAILED, Status.OUT_OF_MEMORY) else "info"
        attempt.tell("ended", level, step=result.steps, status=status, reason=reason)
        attempt.finish(result, keep_checkpoints=screened)
        self.result = result


def _status(error: Exception) -> tuple[Status, str, str]:
    """What an exception makes of a trial: its status, the reason in one line, and the traceback if it is the author's."""
    if isinstance(error, Diverged):
        return Status.DIVERGED, str(error), ""
    if isinstance(error, Screened):
        return Status.SCREENED, str(error), ""
    line = f"{type(error).__name__}: {error}".split("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        return Status.OUT_OF_MEMORY, _without_neighbours(line), ""
    if isinstance(error, MemoryError):
        return Status.OUT_OF_MEMORY, line, ""
    return Status.FAILED, line, "".join(traceback.format_exception(error))


def _without_neighbours(told: str) -> str:
    """Of what CUDA says of its memory, what was asked for and what was allowed: it lists every process on the GPU.

    >>> _without_neighbours("OOM: CUDA out of memory. Tried to allocate 4 GiB. GPU 0 has 9. Process 7 has 2. 3.5 GiB allowed; Of")
    'OOM: CUDA out of memory. Tried to allocate 4 GiB; 3.5 GiB allowed'
    """
    asked, allowed = ". ".join(told.split(". ")[:2]), re.search(r"[\d.]+ \w+ allowed", told)
    return f"{asked}; {allowed[0]}" if allowed else asked


def set_up(spec: TrialSpec, registry: Registry, attempt: Attempt, ranks: Ranks | None = None) -> Training:
    """Builds everything of a trial and puts it where its last commit left it."""
    began = time.process_time()
    task = registry.build_task(spec.task, spec.task_options)
    methods = _methods(spec, registry, attempt)
    if reason := objection(task, methods):
        raise ValueError(reason)
    method = Composition(methods)
    streams = Streams(spec.seed)
    random.seed(streams.seed("method"))
    np.random.seed(streams.seed("method") % 2**32)
    torch.manual_seed(streams.seed("method"))  # what draws without a stream: dropout
    recipe = build_recipe(task, spec.recipe)
    workload = task.workload(recipe, streams, torch.device(spec.device))
    start = taken_start(spec, attempt)
    if start is not None:
        name, content = start
        load_weights(workload.model, content if name == WEIGHTS else content["model"], exact=name != WEIGHTS)
    workload.model = method.adapt(workload.model, workload)
    state = State(workload.model, workload, recipe, streams, horizon=recipe.length)
    if ranks:
        state.ranks = ranks
    if not isinstance(workload, FederatedWorkload):
        state.optimizer = stepping.build_optimizer(method, state)
    probes = {part.name: registry.build_probe(part.name, part.options) for part in spec.probes}
    training = Training(task, state, method, probes, attempt, began)
    method.start(state)
    for probe in probes.values():
        probe.start(state)
    if start is not None and start[0] != WEIGHTS:
        branch(training, start[1])
    if checkpoint := attempt.path(attempt.state.checkpoint):
        best, saved = attempt.path(attempt.state.best), attempt.trial.saved
        training.load_checkpoint(saved(checkpoint), saved(best) if best else None)
    return training


def _methods(spec: TrialSpec, registry: Registry, attempt: Attempt) -> list[Method]:
    """The methods; controls are given the actions that they require."""
    methods = [build_member(registry, part.name, part.options) for part in spec.methods]
    for required in spec.requires:
        if required.taken == ACTIONS:
            control = methods[int(required.path.split(".")[1])]
            assert isinstance(control, Control)
            records = TrialRecords(attempt.trial.folder.parent.parent, required.hash).records()
            control.take([(r["step"], r["action"], r["values"]) for r in records if "action" in r])
    return methods


def build_recipe(task: Task, overrides: dict[str, Any]) -> Any:
    """The task's recipe under overrides, every derived field filled in, checked against the task's options."""
    recipe = dataclasses.replace(task.recipe(), **overrides).resolve()
    task.check(recipe)
    return recipe


@contextmanager
def settings(spec: TrialSpec) -> Iterator[None]:
    """Torch's settings for a trial: threads, default precision, and on a GPU deterministic kernels.

    There an operation of which CUDA has no deterministic version ends the trial as failed, and torch's message names it.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(spec.threads)
    torch.set_default_dtype(getattr(torch, spec.recipe.get("precision", "float32")))
    if spec.device != "cpu":
        os.environ.setdefault(*REPEATABLE_CUBLAS)
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(False)
