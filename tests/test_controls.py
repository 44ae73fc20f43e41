"""Controls by construction: each replaces what an adaptive method does, and nothing else."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
import torch
from support import harness, plugin, run, write_grid

from harness.conformance import short_spec
from harness.controls import KINDS, Control, Delayed
from harness.identity import Part, Requirement, TrialSpec
from harness.method import Method, State
from harness.names import CONTROLS, SEEDS_AHEAD
from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.recording.attempts import Attempt
from harness.recording.records import ACTIONS, Result, Status, TrialRecords
from harness.recording.results import Results
from harness.registry import Registry
from harness.streams import Streams
from harness.training.trial import build_recipe, run_trial

ADAPTIVE = """
import torch

@register_method("damps")
class Damps(Method):
    '''Scales each parameter's gradient by its own largest entry.'''
    def before_step(self, state):
        gradients = {name: p.grad for name, p in state.model.named_parameters()}
        scales = state.act("scale", {name: float(1 / (1 + g.abs().max())) for name, g in gradients.items()})
        for name, scale in scales.items():
            gradients[name].mul_(scale)

@register_method("prefers")
class Prefers(Method):
    '''Gives clients factors by the size of their updates.'''
    needs = frozenset({"clients"})
    def factor(self, updates):
        return torch.stack([1 + sum(d.abs().sum() for d in u.delta.values()) for u in updates])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("controls")


@pytest.fixture(scope="module")
def registry(place: Path) -> Registry:
    return Registry([plugin(place, ADAPTIVE)])


def actions(place: Path, spec: TrialSpec, kind: str) -> list[dict[str, float]]:
    records = TrialRecords(place, spec.hash).records()
    return [r["values"] for r in records if r.get("action", "").split("/")[0] == kind]


def controlled(spec: TrialSpec, control: str, **options: int) -> TrialSpec:
    """The control of a trial's method, taking its actions from that trial itself."""
    content = TrialSpec.from_json(spec.to_json())
    (part,) = content.methods
    content.methods[0] = Part(f"{control}({part.name})", part.options | options)
    if control in SEEDS_AHEAD:
        content.requires.append(Requirement("methods.0", spec.hash, ACTIONS))
    return content


@pytest.fixture(scope="module")
def damped(registry: Registry, place: Path) -> TrialSpec:
    spec = short_spec(registry, "digits/mlp", [Part("damps")])
    assert run(registry, spec, place).status is Status.FINISHED
    return spec


def ran(registry: Registry, spec: TrialSpec, place: Path) -> Result:
    result = run(registry, spec, place)
    assert result.status is Status.FINISHED, result.error
    return result


def test_a_replay_under_the_same_seed_changes_nothing(registry: Registry, place: Path, damped: TrialSpec) -> None:
    own = TrialRecords(place, damped.hash).result()
    assert own is not None
    assert ran(registry, controlled(damped, "replay"), place).weights == own.weights


def test_the_mean_is_over_steps_and_names(registry: Registry, place: Path, damped: TrialSpec) -> None:
    spec = controlled(damped, "mean_of")
    ran(registry, spec, place)
    mean = fmean(value for values in actions(place, damped, "scale") for value in values.values())
    (given,) = {value for values in actions(place, spec, "scale") for value in values.values()}
    assert given == pytest.approx(mean, rel=1e-12)


def test_a_shuffle_gives_each_steps_values_to_others(registry: Registry, place: Path, damped: TrialSpec) -> None:
    spec = controlled(damped, "shuffled")
    ran(registry, spec, place)
    own, shuffled = actions(place, damped, "scale"), actions(place, spec, "scale")
    assert sorted(own[0].values()) == sorted(shuffled[0].values()), "the first step's signal is the same"
    assert [list(values) for values in own] == [list(values) for values in shuffled]
    assert sum(one != other for one, other in zip(own, shuffled, strict=True)) > len(own) / 2


def test_a_delay_is_counted_in_actions(registry: Registry, place: Path) -> None:
    """With a rate too small to change the weights the signal is that of the plain method, so only the delay shows."""
    frozen = short_spec(registry, "digits/mlp", [Part("damps")], lr=1e-30)
    ran(registry, frozen, place)
    spec = controlled(frozen, "delayed", delay=3)
    ran(registry, spec, place)
    own, late = actions(place, frozen, "scale"), actions(place, spec, "scale")
    assert late == [own[max(0, step - 3)] for step in range(len(own))]


def test_a_clients_factor_is_late_by_its_own_visits() -> None:
    control = Delayed("delayed(prefers)", Method(), delay=1)
    rounds = [{"1": 1.0, "2": 2.0}, {"2": 3.0, "3": 4.0}, {"1": 5.0, "3": 6.0}]
    given = [control.replace(step, "factor", values) for step, values in enumerate(rounds)]
    assert given == [{"1": 1.0, "2": 2.0}, {"2": 2.0, "3": 4.0}, {"1": 1.0, "3": 4.0}]


def test_factor_is_the_name_of_what_clients_are_given(registry: Registry) -> None:
    spec = short_spec(registry, "digits/mlp", [])
    task = registry.build_task(spec.task, {})
    recipe = build_recipe(task, spec.recipe)
    workload = task.workload(recipe, Streams(0), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"act: found 'factor', which Method.factor gives to clients"):
        State(workload.model, workload, recipe, Streams(0), 1).act("factor", {"a": 1.0})


def test_a_client_keeps_its_own_mean(registry: Registry, place: Path) -> None:
    source = short_spec(registry, "digits/federated", [Part("prefers")])
    ran(registry, source, place)
    spec = controlled(source, "mean_of")
    ran(registry, spec, place)
    given: dict[str, list[float]] = {}
    for values in actions(place, source, "factor"):
        for client, value in values.items():
            given.setdefault(client, []).append(value)
    for values in actions(place, spec, "factor"):
        assert values == pytest.approx({client: fmean(given[client]) for client in values})


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_resumes_exactly(registry: Registry, place: Path, damped: TrialSpec, control: str) -> None:
    spec = controlled(damped, control)
    whole = ran(registry, spec, place / "whole" if control not in SEEDS_AHEAD else place)
    again = TrialSpec.from_json(spec.to_json())
    again.recipe["record_every"] = 5  # another identity, the same training
    with pytest.raises(Exception, match="stopped at step 7"):
        run(registry, again, place, halt=lambda step: step == 7)
    assert ran(registry, again, place).weights == whole.weights


def hooks() -> Iterator[str]:
    yield from (name for name, value in vars(Method).items() if inspect.isfunction(value) and name[0] != "_")


@pytest.mark.parametrize("hook", hooks())
def test_every_hook_reaches_the_method(hook: str) -> None:
    assert getattr(Control, hook) is not getattr(Method, hook)


GRID = """
name: controls
tasks: [digits/mlp]
methods: [adamw, damps, mean_of(damps), shuffled(damps), "delayed(damps)": {delay: 2}, replay(damps)]
seeds: 3
recipes: [{set: {steps: 20}}]
"""


def test_a_grid_plans_controls_after_what_they_take(registry: Registry, tmp_path: Path) -> None:
    plan = build_plan(load_grid(write_grid(tmp_path, GRID), [], registry), registry)
    found = {(trial.method_label, trial.spec.seed["init"]): trial for trial in plan.trials}
    for seed in range(3):
        mean, replay = found["mean_of(damps)", seed], found["replay(damps)", seed]
        assert mean.spec.requires == [Requirement("methods.0", found["damps", seed].hash, ACTIONS)]
        assert replay.spec.requires == [Requirement("methods.0", found["damps", (seed + 1) % 3].hash, ACTIONS)]
        assert (mean.stage, found["shuffled(damps)", seed].stage) == (1, 0)


def test_controls_leave_a_run_that_is_under_way(registry: Registry, tmp_path: Path) -> None:
    """Each begins where plain AdamW was after a quarter, and takes only what the method did from there on."""
    text = GRID.replace("seeds: 3", "seeds: 2") + "start: {from: adamw, at: 0.25}\n"
    plan = build_plan(load_grid(write_grid(tmp_path, text), [], registry), registry)
    found = {(trial.method_label, trial.spec.seed["init"]): trial for trial in plan.trials}
    trunk, other = found["adamw", 0], found["adamw", 1]
    for trial in sorted(plan.trials, key=lambda trial: trial.stage):
        starts = [required.hash for required in trial.spec.requires if required.path == "start"]
        seed = trial.spec.seed["init"]
        assert starts == ([] if trial in (trunk, other) else [(trunk, other)[seed].hash])
        with Attempt(tmp_path, trial.hash, trial.spec.to_json(), "test") as attempt:
            keep = sorted(plan.kept.get(trial.hash, ()))
            assert run_trial(trial.spec, registry, attempt, keep=keep).status is Status.FINISHED
    did = {key: actions(tmp_path, trial.spec, "scale") for key, trial in found.items()}
    own = did["damps", 0]
    assert len(own) == 15 and did["adamw", 0] == []
    records = TrialRecords(tmp_path, found["damps", 0].hash).records()
    assert min(record["step"] for record in records if "action" in record) == 5, "steps that are done"
    assert did["replay(damps)", 1] == own, "what seed 0 did"
    mean = fmean(value for values in own for value in values.values())
    (given,) = {value for values in did["mean_of(damps)", 0] for value in values.values()}
    assert given == pytest.approx(mean, rel=1e-12)
    assert sorted(did["shuffled(damps)", 0][0].values()) == sorted(own[0].values())
    assert did["delayed(damps)", 0][:3] == [own[0]] * 3, "two actions late, the first one until then"


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("[adamw, mean_of(damps)]", "needs runs of 'damps' with the same options, allowed: beside it in methods"),
        ("[damps, median_of(damps)]", "'median_of', which is no control, allowed: mean_of, shuffled, replay, delayed"),
        ("[damps, mean_of(dams)]", "'dams', which is no method"),
        ("[damps, {delayed(damps): {delays: 2}}]", "did you mean 'delay'"),
        ("[damps, {delayed(damps): {delay: 0}}]", "delay: found 0, must be at least 1"),
        ("[damps, mean_of(mean_of(damps))]", "is no method"),
    ],
)
def test_bad_controls_are_answered(registry: Registry, tmp_path: Path, methods: str, said: str) -> None:
    text = GRID.replace(GRID.splitlines()[3], f"methods: {methods}")
    with pytest.raises(GridError) as caught:
        build_plan(load_grid(write_grid(tmp_path, text), [], registry), registry)
    assert said in str(caught.value).replace('"', "'")


def test_every_control_has_a_name_that_grids_know() -> None:
    assert KINDS.keys() == CONTROLS.keys()


@pytest.mark.slow
def test_controls_run_in_a_grid(registry: Registry, place: Path, tmp_path: Path) -> None:
    grid, results = write_grid(tmp_path, GRID), Results(tmp_path / "results")
    plan = build_plan(load_grid(grid, [], registry), registry)
    harness("run", grid, "--results", results.folder, "--plugin", place / "plugin.py")
    ended = results.results(trial.hash for trial in plan.trials)
    assert [ended[trial.hash].status for trial in plan.trials] == [Status.FINISHED] * 18
    values = [ended[trial.hash].values for trial in plan.trials if trial.method_label == "replay(damps)"]
    weights = [ended[trial.hash].weights for trial in plan.trials if trial.method_label == "damps"]
    assert values == [{"methods.0": weight} for weight in (weights[1], weights[2], weights[0])]
