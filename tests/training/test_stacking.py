"""Several seeds of a cell as one computation: a seed's bits depend on nothing but the seed."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import Told, plugin, run, seeded, together, told

from harness.conformance import short_spec
from harness.identity import Part, TrialSpec
from harness.recording.attempts import Attempt
from harness.recording.records import Status, TrialRecords
from harness.registry import Registry
from harness.screening import Screen
from harness.training.together import run_stack
from harness.training.trial import Course

Alone = dict[int, Told]


@pytest.fixture(scope="module")
def spec(registry: Registry) -> TrialSpec:
    return short_spec(registry, "digits/mlp", [Part("adamw")], [Part("activation_flips", {"every": 3})], clip=0.5)


@pytest.fixture(scope="module")
def alone(registry: Registry, spec: TrialSpec, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What each of five seeds comes to at width one."""
    results = tmp_path_factory.mktemp("alone")
    return {seed: told(results, together(registry, results, spec, [seed])[0]) for seed in range(5)}


@pytest.mark.parametrize("seeds", [[3, 1], [0, 1, 2, 3, 4]])
def test_a_seed_has_the_same_bits_at_every_width(
    registry: Registry, spec: TrialSpec, alone: Alone, tmp_path: Path, seeds: list[int]
) -> None:
    for seed, result in zip(seeds, together(registry, tmp_path, spec, seeds), strict=True):
        assert told(tmp_path, result) == alone[seed]


@pytest.mark.parametrize("method", ["sgd", "adam", "balanced_adam"])
def test_a_stack_follows_the_plain_path(registry: Registry, tmp_path: Path, method: str) -> None:
    spec = short_spec(
        registry,
        "digits/mlp",
        [Part(method)],
        precision="float64",
        clip=0.5,
        accumulate=2,
        momentum=0.9,
        schedule="cosine",
    )
    for seed, result in enumerate(together(registry, tmp_path, spec, [0, 1])):
        _, metrics, records = told(tmp_path, result)
        plain = run(registry, replace(spec, seed={"init": seed}), tmp_path)
        expected = told(tmp_path, plain)
        assert metrics == pytest.approx(expected[1], rel=1e-9)
        assert [r["metrics"] for r in records] == [pytest.approx(r["metrics"], rel=1e-9) for r in expected[2]]


def test_a_stack_goes_on_where_it_was(registry: Registry, spec: TrialSpec, alone: Alone, tmp_path: Path) -> None:
    assert together(registry, tmp_path, spec, [0, 1, 2], halt=7) == [None] * 3
    for seed, result in enumerate(together(registry, tmp_path, spec, [0, 1, 2])):
        assert told(tmp_path, result) == alone[seed]
        steps = [record["step"] for record in TrialRecords(tmp_path, seeded(spec, seed).hash).records()]
        assert steps == sorted(set(steps))


def test_members_that_stand_at_different_steps_meet(
    registry: Registry, spec: TrialSpec, alone: Alone, tmp_path: Path
) -> None:
    together(registry, tmp_path, spec, [0, 1], halt=5)
    together(registry, tmp_path, spec, [2], halt=11)
    together(registry, tmp_path, spec, [3])  # is done
    for seed, result in zip([4, 2, 1, 0], together(registry, tmp_path, spec, [4, 2, 1, 0]), strict=True):
        assert told(tmp_path, result) == alone[seed]


def test_one_seed_may_end_without_the_others(registry: Registry, spec: TrialSpec, tmp_path: Path) -> None:
    plugins = Registry([plugin(tmp_path, SOME)])
    spec = replace(spec, methods=[Part("adamw"), Part("some")])
    expected = {seed: told(tmp_path / "a", together(plugins, tmp_path / "a", spec, [seed])[0]) for seed in (0, 4)}
    ended = together(plugins, tmp_path / "b", spec, [0, 1, 2, 3, 4])
    statuses = [(result.status, result.steps, result.reason) for result in ended if result]
    assert statuses[1] == ("diverged", 6, "the objective is nan at step 6")
    assert statuses[2] == ("failed", 9, "KeyError: 'mistake'")
    assert "raise KeyError" in ended[2].error  # type: ignore[union-attr]
    assert statuses[3] == ("failed", 0, "RuntimeError: seed 3 cannot start")
    for seed in (0, 4):
        assert told(tmp_path / "b", ended[seed]) == expected[seed]


SOME = """
import torch

@register_method("some")
class Some(Method):
    stackable = True

    def start(self, state):
        self.seed = state.streams._seeds["init"]
        if self.seed == 3:
            raise RuntimeError("seed 3 cannot start")

    def after_step(self, state):
        if self.seed == 1 and state.step == 6:
            with torch.no_grad():
                next(state.model.parameters()).fill_(float("nan"))
        if self.seed == 2 and state.step == 9:
            raise KeyError("mistake")
"""


def test_what_all_seeds_share_raises_and_the_others_go_on(registry: Registry, tmp_path: Path) -> None:
    plugins = Registry([plugin(tmp_path, BATCHES)])
    spec = short_spec(plugins, "broken/mlp", [Part("adamw")])
    (expected,) = together(plugins, tmp_path / "a", spec, [0])
    first, second = together(plugins, tmp_path / "b", spec, [0, 1], commit_every=0.0)
    assert told(tmp_path / "b", first) == told(tmp_path / "a", expected)
    assert second is not None
    assert (second.status, second.reason) == ("failed", "ValueError: batch 5 of seed 1 is broken")


BATCHES = """
from tasks.supervised import Classification, DigitsMLP
from harness import register_task

class Broken(Classification):
    def next_batch(self):
        self.drawn = getattr(self, "drawn", 0) + 1
        if self.seed == 1 and self.drawn == 5:
            raise ValueError("batch 5 of seed 1 is broken")
        return super().next_batch()

@register_task("broken/mlp")
class BrokenMLP(DigitsMLP):
    \"\"\"Fails under seed 1.\"\"\"

    def workload(self, recipe, streams, device):
        built = super().workload(recipe, streams, device)
        built.__class__, built.seed = Broken, streams._seeds["init"]
        return built
"""


def test_hooks_see_one_seed(registry: Registry, tmp_path: Path) -> None:
    plugins = Registry([plugin(tmp_path, FREEZE)])
    spec = short_spec(plugins, "digits/mlp", [Part("sgd"), Part("freeze")], weight_decay=0.0, momentum=0.0)
    moving = replace(spec, methods=[Part("sgd")])
    frozen, free = together(plugins, tmp_path / "a", spec, [0, 1])
    assert told(tmp_path / "a", free) == told(tmp_path / "b", together(plugins, tmp_path / "b", moving, [1])[0])
    assert frozen is not None
    (started,) = together(plugins, tmp_path / "c", replace(moving, recipe=spec.recipe | {"lr": 1e-30}), [0])
    assert started is not None
    assert frozen.weights == started.weights


FREEZE = """
import torch

@register_method("freeze")
class Freeze(Method):
    stackable = True

    def before_step(self, state):
        optimizer = state.optimizer
        assert {p for g in optimizer.param_groups for p in g["params"]} == set(state.model.parameters())
        assert len(state.batches) == len(state.objectives) == 1
        assert state.batches[0]["inputs"].shape[0] == state.objectives[0].size
        if state.streams._seeds["init"] == 0:
            for parameter in state.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
"""


def test_a_checkpoint_holds_one_seed(registry: Registry, spec: TrialSpec, tmp_path: Path) -> None:
    sizes = []
    for seeds in ([0], [0, 1, 2, 3, 4]):
        together(registry, tmp_path / str(len(seeds)), spec, seeds, halt=9)
        commit = TrialRecords(tmp_path / str(len(seeds)), seeded(spec, 0).hash).commit()
        assert commit is not None
        assert commit.checkpoint is not None
        file = tmp_path / str(len(seeds)) / "trials" / seeded(spec, 0).hash / commit.checkpoint
        sizes.append(file.stat().st_size)
        saved = torch.load(file, weights_only=True)["optimizer"]["state"]
        assert sorted(saved) == [0, 1, 2, 3, 4, 5]
        assert all(state["step"].item() == 9 for state in saved.values())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_a_screened_seed_leaves_the_stack(registry: Registry, spec: TrialSpec, alone: Alone, tmp_path: Path) -> None:
    screens = {1: Screen("lr", 0.5, {"lr": (1.0, 2.0)}, "mark"), 2: Screen("lr", 0.5, {"lr": (0.0, 1.0)})}
    first, second, third = together(registry, tmp_path, spec, [0, 1, 2], screens=screens)
    assert second is not None
    assert (second.status, second.steps, second.screening) == ("screened", 10, "mark")
    assert (told(tmp_path, first), told(tmp_path, third)) == (alone[0], alone[2])
    (again,) = together(registry, tmp_path, spec, [1])
    assert told(tmp_path, again) == alone[1], "without the rule it goes on from there"


def test_a_method_must_opt_in(registry: Registry, spec: TrialSpec, tmp_path: Path) -> None:
    spec = replace(spec, methods=[Part("oui_decay")])
    (result,) = together(registry, tmp_path, spec, [0])
    assert result is not None
    assert (result.status, result.reason) == ("failed", "ValueError: oui_decay cannot run stacked")


def test_settings_that_differ_between_seeds_are_refused(registry: Registry, tmp_path: Path) -> None:
    plugins = Registry([plugin(tmp_path, RATES)])
    spec = short_spec(plugins, "digits/mlp", [Part("sgd"), Part("rates")])
    for result in together(plugins, tmp_path, spec, [0, 1]):
        assert result is not None
        assert result.status is Status.FINISHED, "apart, each has its own rate"


RATES = """
@register_method("rates")
class Rates(Method):
    stackable = True

    def before_step(self, state):
        state.optimizer.param_groups[0]["lr"] *= 1 + state.streams._seeds["init"]
"""


def test_trials_of_two_cells_are_refused(registry: Registry, spec: TrialSpec, tmp_path: Path) -> None:
    specs = [seeded(spec, 0), replace(seeded(spec, 1), recipe=spec.recipe | {"lr": 1.0})]
    with ExitStack() as held:
        attempts = [held.enter_context(Attempt(tmp_path, s.hash, s.to_json(), "test")) for s in specs]
        courses = [Course(s, attempt, {}) for s, attempt in zip(specs, attempts, strict=True)]
        with pytest.raises(ValueError, match="several cells"):
            run_stack(courses, registry)
