"""What several tests need: a plugin file, a trial run to its end, a bare training loop."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.identity import TrialSpec
from harness.recording.attempts import Attempt
from harness.recording.records import Result, Status, TrialRecords
from harness.recording.results import Results
from harness.registry import Registry
from harness.streams import Streams
from harness.task import Task
from harness.training.loop import Interrupted
from harness.training.together import run_stack
from harness.training.trial import Course, build_recipe, run_trial

DOCS = Path(__file__).parents[1] / "docs"
RELEASED = DOCS / "papers" / "published"
"""What the papers' authors released: docs/papers_published.py says what."""

TROUBLE = """
import os, signal, sys, time, warnings
from pathlib import Path
import torch

@register_method("nan")
class NaN(Method):
    def after_step(self, state):
        with torch.no_grad():
            next(state.model.parameters()).fill_(float("nan"))

@register_method("raises")
class Raises(Method):
    def after_step(self, state):
        print("about to raise")
        raise KeyError("mistake")

@register_method("warns")
class Warns(Method):
    def after_step(self, state):
        warnings.warn("careful")

@register_method("hangs")
class Hangs(Method):
    def after_step(self, state):
        time.sleep(600)

@register_method("eats")
class Eats(Method):
    def after_step(self, state):
        self.eaten = getattr(self, "eaten", [])
        while True:
            self.eaten.append(torch.ones(16 << 20))

@register_method("exits")
class Exits(Method):
    code: int = 0
    def after_step(self, state):
        os._exit(self.code)

@register_method("crashes")
class Crashes(Method):
    def after_step(self, state):
        os.kill(os.getpid(), signal.SIGSEGV)

@register_method("spoils")
class Spoils(Method):
    def after_step(self, state):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        sys.path.clear()

@register_method("slow")
class Slow(Method):
    def after_step(self, state):
        file = Path(__file__).with_name("pace")
        time.sleep(float(file.read_text()) if file.exists() else 0.05)
"""
"""Methods that end a trial in every way there is, and one whose pace a test may set."""


def plugin(folder: Path, source: str) -> Path:
    """A plugin file."""
    path = folder / "plugin.py"
    path.write_text("from harness import *\nfrom harness import Method, register_method\n" + textwrap.dedent(source))
    return path


def run(
    registry: Registry,
    spec: TrialSpec,
    results: Path,
    halt: Callable[[int], bool] = lambda step: False,
    commit_every: float = 15.0,
) -> Result:
    """One attempt at a trial."""
    with Attempt(results, spec.hash, spec.to_json(), "test") as attempt:
        return run_trial(spec, registry, attempt, halt=halt, commit_every=commit_every)


Told = tuple[str, dict[str, float], list[dict[str, Any]]]


def seeded(spec: TrialSpec, seed: int) -> TrialSpec:
    return replace(spec, seed={"init": seed}, stacked=True)


def together(
    registry: Registry,
    results: Path,
    spec: TrialSpec,
    seeds: list[int],
    halt: int | None = None,
    screens: dict[int, Any] | None = None,
    **settings: Any,
) -> list[Result | None]:
    """One try at several seeds as one."""
    specs = [seeded(spec, seed) for seed in seeds]
    with ExitStack() as held:
        attempts = [held.enter_context(Attempt(results, s.hash, s.to_json(), "test")) for s in specs]
        screening = screens or {}
        courses = [
            Course(s, attempt, {}, screen=screening.get(seed))
            for s, attempt, seed in zip(specs, attempts, seeds, strict=True)
        ]
        try:
            run_stack(courses, registry, halt=lambda step: step == halt, **settings)
        except Interrupted:
            assert halt is not None
        return [course.result for course in courses]


def told(results: Path, result: Result | None) -> Told:
    """All numbers of a trial: of its weights, its final metrics, and its records."""
    assert result is not None, "it has no result"
    assert result.status is Status.FINISHED, result.error or result.reason
    records = list(TrialRecords(results, result.hash).records())
    kept = [{**r, "time": 0, "metrics": timeless(r.get("metrics", {}))} for r in records]
    return result.weights, timeless(result.metrics), kept


def bare_digits(spec: TrialSpec) -> dict[str, torch.Tensor]:
    """digits/mlp with AdamW as anybody would write it, on the harness's data and initial weights."""
    from harness.streams import Streams
    from tasks.data import digits
    from tasks.models import mlp

    torch.set_num_threads(1)
    streams = Streams(spec.seed)
    train = digits(streams, torch.device("cpu")).train
    with streams.default("init"):
        model = torch.nn.Sequential(torch.nn.Flatten(), mlp(64, [64, 64], 10))
    recipe = spec.recipe
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"], fused=True)
    generator, step = streams.torch("data"), 0
    while step < recipe["steps"]:
        order = torch.randperm(len(train), generator=generator)
        for batch in order.split(recipe["batch"]):
            if len(batch) < recipe["batch"] or step == recipe["steps"]:
                break
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(train.inputs[batch]), train.labels[batch])
            loss.backward()
            optimizer.step()
            step += 1
    return model.state_dict()


def first_gradient(task: Task, device: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A task's first objective, and its gradients by the predictions, which StableGrad is made from, and by the weights."""
    built = task.workload(build_recipe(task, {}), Streams(0), torch.device(device))
    objective = built.objective(built.model, built.next_batch())
    predictions = list(objective.predictions.values())
    by_predictions = torch.autograd.grad(objective.value, predictions, retain_graph=True)
    assert all(gradient.any() for gradient in by_predictions)
    objective.value.backward()
    slopes = [parameter.grad for parameter in built.model.parameters() if parameter.grad is not None]
    return objective.value.detach(), [*by_predictions, *slopes]


def command(*arguments: object) -> list[str]:
    """`harness` with arguments, as this interpreter runs it."""
    return [sys.executable, "-m", "harness.cli", *map(str, arguments)]


def harness(*arguments: object, status: int = 0, timeout: float = 600, **environment: str) -> str:
    """Runs `harness`, checks its exit status and returns what it printed."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, env=os.environ | environment
    )
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def results_of(folder: Path) -> dict[str, Result]:
    """The result of every trial in a results folder, by hash."""
    found = Results(folder).results(path.name for path in (folder / "trials").iterdir())
    assert found
    return found


def write_grid(folder: Path, text: str) -> Path:
    """A grid file."""
    path = folder / "grid.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool], seconds: float = 600) -> None:
    """Kills a process with SIGKILL as soon as something has happened."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics without those that may differ between two runs of one trial."""
    return {name: value for name, value in metrics.items() if not name.startswith(("time/", "system/"))}
