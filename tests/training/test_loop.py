"""The one training loop: its steps, hooks, records and ends."""

import math
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import bare_digits, plugin, run

from harness.conformance import run_short, same, short_spec
from harness.identity import Part
from harness.recipe import Recipe
from harness.recording.attempts import Attempt
from harness.recording.records import RecordsError, Status, TrialRecords
from harness.registry import Registry
from harness.training.evaluation import peak_memory
from harness.training.loop import Interrupted


def test_a_trial_equals_a_bare_loop(registry: Registry) -> None:
    spec = short_spec(registry, "digits/mlp", [Part("adamw")], steps=50, evaluate_every=50)
    assert same(run_short(registry, spec).weights, bare_digits(spec))


HOOKS = """
@register_method("hook_order")
class HookOrder(Method):
    seen = []

    def note(self, hook, state):
        self.seen.append((hook, state.step, len(state.objectives)))

    def before_backward(self, state): self.note("before_backward", state)
    def after_backward(self, state): self.note("after_backward", state)
    def before_step(self, state): self.note("before_step", state)
    def after_step(self, state): self.note("after_step", state)
    def before_evaluation(self, state): self.note("before_evaluation", state)
    def after_evaluation(self, state, metrics):
        assert "val/accuracy" in metrics
        self.note("after_evaluation", state)
"""


def test_hooks_come_in_order(tmp_path: Path) -> None:
    registry = Registry([plugin(tmp_path, HOOKS)])
    spec = short_spec(registry, "digits/mlp", [Part("hook_order")], steps=2, accumulate=2, evaluate_every=2)
    run_short(registry, spec)
    assert registry.load("method", "hook_order").seen == [  # type: ignore[attr-defined]
        ("before_backward", 0, 1),
        ("before_backward", 0, 2),
        ("after_backward", 0, 2),
        ("before_step", 0, 2),
        ("after_step", 1, 2),
        ("before_backward", 1, 1),
        ("before_backward", 1, 2),
        ("after_backward", 1, 2),
        ("before_step", 1, 2),
        ("after_step", 2, 2),
        ("before_evaluation", 2, 2),
        ("after_evaluation", 2, 2),
    ]


def test_accumulated_micro_batches_are_one_batch(registry: Registry) -> None:
    options = {"steps": 8, "precision": "float64", "evaluate_every": 8}
    whole = run_short(registry, short_spec(registry, "digits/mlp", [Part("sgd")], batch=64, **options))
    parts = run_short(registry, short_spec(registry, "digits/mlp", [Part("sgd")], batch=32, accumulate=2, **options))
    for name, expected in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], expected, rtol=1e-10, atol=1e-12)


def test_commits_do_not_change_numbers(registry: Registry, tmp_path: Path) -> None:
    spec = short_spec(registry, "digits/cnn", [Part("adamw")], [Part("oui")])
    often = run(registry, spec, tmp_path / "often", commit_every=0.0)
    seldom = run(registry, spec, tmp_path / "seldom", commit_every=1e9)
    timeless = {name for name in often.metrics if not name.startswith(("time/", "system/"))}
    assert {name: often.metrics[name] for name in timeless} == {name: seldom.metrics[name] for name in timeless}


def test_an_interrupted_trial_goes_on(registry: Registry, tmp_path: Path) -> None:
    spec = short_spec(registry, "digits/mlp", [Part("adamw")])
    with pytest.raises(Interrupted):
        run(registry, spec, tmp_path, halt=lambda step: step == 11)
    assert TrialRecords(tmp_path, spec.hash).result() is None
    assert run(registry, spec, tmp_path).attempt == 2
    steps = [record["step"] for record in TrialRecords(tmp_path, spec.hash).records()]
    assert steps == sorted(set(steps)), "no point is doubled"


ENDS = """
import torch

@register_method("makes_nan")
class MakesNaN(Method):
    def after_step(self, state):
        if state.step == 5:
            with torch.no_grad():
                next(state.model.parameters()).fill_(float("nan"))

@register_method("raises")
class Raises(Method):
    def after_step(self, state):
        raise KeyError("the author's mistake")

@register_method("no_memory")
class NoMemory(Method):
    def after_step(self, state):
        raise MemoryError("too much")
"""


@pytest.mark.parametrize(
    ("method", "status", "reason"),
    [
        ("makes_nan", Status.DIVERGED, "the objective is nan at step 5"),
        ("raises", Status.FAILED, 'KeyError: "the author\'s mistake"'),
        ("no_memory", Status.OUT_OF_MEMORY, "MemoryError: too much"),
    ],
)
def test_trouble_becomes_a_status(tmp_path: Path, method: str, status: Status, reason: str) -> None:
    registry = Registry([plugin(tmp_path, ENDS)])
    ended = run(registry, short_spec(registry, "digits/mlp", [Part(method)]), tmp_path / "results")
    assert (ended.status, ended.reason) == (status, reason)
    assert ("the author's mistake" in ended.error) == (method == "raises")


def test_weights_that_the_last_step_spoils_are_no_finished_trial(tmp_path: Path) -> None:
    """No objective follows that step: the score says it, and would be missing from a finished result."""
    registry = Registry([plugin(tmp_path, ENDS)])
    spec = short_spec(registry, "digits/mlp", [Part("makes_nan")], steps=5, evaluate_every=5)
    ended = run(registry, spec, tmp_path / "results")
    assert (ended.status, ended.reason) == (Status.DIVERGED, "val/loss is nan after step 5, the last one")


def test_a_checkpoint_that_cannot_be_read_is_no_failure_of_the_trial(registry: Registry, tmp_path: Path) -> None:
    spec = short_spec(registry, "digits/mlp", [Part("adamw")])
    with Attempt(tmp_path, spec.hash, spec.to_json(), "test") as attempt:
        attempt.commit(1, b"checkpoint")
    (attempt.folder / "last-1.pt").unlink()
    with pytest.raises(RecordsError, match=r"last-1\.pt: found no such file"):
        run(registry, spec, tmp_path)
    assert attempt.trial.result() is None


COUNTS = """
@register_method("counts_test_reads")
class CountsTestReads(Method):
    reads = []

    def adapt(self, model, workload):
        evaluate = workload.evaluate
        def counted(model, split):
            self.reads.append(split)
            return evaluate(model, split)
        workload.evaluate = counted
        return model
"""


def test_test_is_read_once(tmp_path: Path) -> None:
    registry = Registry([plugin(tmp_path, COUNTS)])
    run_short(registry, short_spec(registry, "digits/mlp", [Part("counts_test_reads")]))
    reads = registry.load("method", "counts_test_reads").reads  # type: ignore[attr-defined]
    assert reads.count("test") == 1
    assert reads[-1] == "test"


ACTS = """
@register_method("acts")
class Acts(Method):
    def after_step(self, state):
        if state.step == 3:
            state.act("decay", {"layer": 0.5})

    def selectable(self, state):
        return state.step <= 8
"""


def test_actions_and_selection(tmp_path: Path) -> None:
    registry = Registry([plugin(tmp_path, ACTS)])
    spec = short_spec(registry, "digits/mlp", [Part("acts")], steps=24)
    ended = run(registry, spec, tmp_path / "results")
    actions = [r for r in TrialRecords(tmp_path / "results", spec.hash).records() if "action" in r]
    assert actions == [{"step": 3, "action": "decay", "values": {"layer": 0.5}}]
    assert ended.metrics["selected_step"] == 8, "later points were not selectable"


def test_gradients_are_clipped(tmp_path: Path) -> None:
    source = """
    @register_method("measures_norm")
    class MeasuresNorm(Method):
        norms = []
        def before_step(self, state):
            total = sum(float(p.grad.square().sum()) for p in state.model.parameters())
            self.norms.append(total ** 0.5)
    """
    registry = Registry([plugin(tmp_path, source)])
    run_short(registry, short_spec(registry, "digits/mlp", [Part("measures_norm")], clip=0.01))
    norms = registry.load("method", "measures_norm").norms  # type: ignore[attr-defined]
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_memory_of_a_process_is_told_in_bytes(system: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 << 20))
    assert peak_memory() == (3 << 20) * unit


@pytest.mark.parametrize("step", [0, 3, 10, 55, 99])
def test_schedules(step: int) -> None:
    warm = (step + 1) / 11 if step < 10 else None
    done = (step - 10) / 90
    linear = Recipe(steps=100, schedule="linear", warmup=10).rate_factor(step)
    cosine = Recipe(steps=100, schedule="cosine", warmup=10, final_rate=0.1).rate_factor(step)
    assert linear == pytest.approx(warm if warm is not None else 1 - done)
    assert cosine == pytest.approx(warm if warm is not None else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


@pytest.mark.parametrize(
    ("field", "value"), [("lr", 0.0), ("steps", 0), ("beta1", 1.0), ("weight_decay", -1.0), ("clip", -1.0)]
)
def test_recipes_are_checked(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}: found {value}"):
        Recipe(**{field: value})  # type: ignore[arg-type]
