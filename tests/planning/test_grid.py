"""What a grid comes to: numbers of trials, the last word, axes, compositions, streams, resources."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning.malformed import GOOD, grid
from ruamel.yaml import YAML

from harness.planning.cells import lay_out
from harness.planning.errors import GridError, Where
from harness.planning.grid import check_grid
from harness.planning.plan import Plan
from harness.planning.reading import Draft, parse, read_draft
from harness.registry import Registry
from harness.resources import Resources

Planner = Callable[..., Plan]


def test_trials_are_the_product_of_tasks_methods_axes_and_seeds(planned: Planner) -> None:
    plan = planned(
        grid(
            tasks="[digits/mlp, digits/cnn: {width: {each: [8, 16, 32]}, activation: {each: [relu, gelu]}}]",
            methods="[adamw, balanced_adam: {beta: {each: [0.5, 0.9]}}]",
            seeds="4",
            recipes="[{set: {lr: {each: [0.1, 0.2, 0.3]}, steps: 20}}]",
        )
    )
    assert len(plan.trials) == (1 + 3 * 2) * (1 + 2) * 3 * 4
    assert len({trial.hash for trial in plan.trials}) == len(plan.trials)
    assert len({trial.cell for trial in plan.trials}) == len(plan.trials) / 4
    assert plan.methods == ["adamw", "balanced_adam(beta=0.5)", "balanced_adam(beta=0.9)"]
    widths = [trial.axes.get("task.width") for trial in plan.trials]
    assert {width: widths.count(width) for width in (8, 16, 32)} == dict.fromkeys((8, 16, 32), 2 * 3 * 3 * 4)
    assert all(
        trial.spec.task_options["width"] == trial.axes["task.width"]
        for trial in plan.trials
        if "task.width" in trial.axes
    )


def test_a_bare_list_is_a_value_and_an_axis_is_written(planned: Planner) -> None:
    plan = planned(grid(tasks="[digits/mlp: {hidden: [32, 16]}, digits/mlp: {hidden: {each: [[8], [4, 4]]}}]"))
    assert [trial.spec.task_options["hidden"] for trial in plan.trials] == [[32, 16], [8], [4, 4]]


def test_the_same_task_with_other_options_gets_a_label_that_tells_them_apart(planned: Planner) -> None:
    plan = planned(grid(tasks="[digits/cnn, digits/cnn: {width: 8}]"))
    assert plan.tasks == ["digits/cnn", "digits/cnn(width=8)"]


def test_zip_pairs_axes(planned: Planner) -> None:
    plan = planned(GOOD + "recipes: [{set: {zip: {lr: [0.1, 0.2], steps: [10, 20]}, batch: {each: [8, 16, 32]}}}]\n")
    found = [tuple(trial.spec.recipe[name] for name in ("lr", "steps", "batch")) for trial in plan.trials]
    assert sorted(found) == sorted(
        (lr, steps, b) for (lr, steps), b in itertools.product([(0.1, 10), (0.2, 20)], [8, 16, 32])
    )


def test_a_later_word_takes_a_field_out_of_a_zip(planned: Planner) -> None:
    plan = planned(GOOD + "recipes: [{set: {zip: {lr: [0.1, 0.2], steps: [10, 20]}}}]\n", "recipe.lr=0.5")
    assert [(trial.spec.recipe["lr"], trial.spec.recipe["steps"]) for trial in plan.trials] == [(0.5, 10), (0.5, 20)]


def test_when_makes_one_axis_depend_on_another(planned: Planner) -> None:
    plan = planned(
        GOOD + "recipes:\n"
        "  - set:\n"
        "      momentum: {when: {lr: {0.1: {each: [0.0, 0.9]}, 0.01: 0.5}}}\n"
        "      lr: {when: {optimizer: {sgd: {each: [0.1, 0.01]}, adamw: 0.01}}}\n"
        "      optimizer: {each: [sgd, adamw]}\n"
    )
    fields = ("optimizer", "lr", "momentum")
    found = {tuple(trial.spec.recipe[name] for name in fields) for trial in plan.trials}
    assert found == {("sgd", 0.1, 0.0), ("sgd", 0.1, 0.9), ("sgd", 0.01, 0.5), ("adamw", 0.01, 0.5)}
    assert len(plan.trials) == 4


def test_when_may_depend_on_an_option_that_has_its_default(planned: Planner) -> None:
    plan = planned(grid(tasks="[digits/cnn: {width: {when: {activation: {relu: 4, gelu: 8}}}}]"))
    assert [trial.spec.task_options["width"] for trial in plan.trials] == [4]


def test_the_last_word_wins(planned: Planner) -> None:
    text = grid(
        tasks="[digits/mlp, digits/cnn]",
        methods="[adamw, sgd]",
        recipes="[{set: {lr: 0.1, steps: 10}}, {task: '*/cnn', set: {lr: 0.2}}, {method: sgd, set: {lr: 0.3}}, "
        "{task: '*/mlp', set: {batch: 8}}]",
    )
    found = {(t.spec.task, t.spec.method): (t.spec.recipe["lr"], t.spec.recipe["batch"]) for t in planned(text).trials}
    assert found == {
        ("digits/mlp", "adamw"): (0.1, 8),
        ("digits/mlp", "sgd"): (0.3, 8),
        ("digits/cnn", "adamw"): (0.2, 64),
        ("digits/cnn", "sgd"): (0.3, 64),
    }
    plan = planned(text, "recipe.lr=0.9", "recipe.lr={each: [0.7, 0.8]}")
    assert sorted({trial.spec.recipe["lr"] for trial in plan.trials}) == [0.7, 0.8]


def test_rules_mean_names_and_labels(planned: Planner) -> None:
    text = grid(
        tasks="[digits/cnn: {width: 8}, digits/cnn: {width: 16}]",
        methods="[adamw: {beta2: {each: [0.9, 0.99]}}, sgd]",
        recipes="[{set: {lr: 0.1}}, {task: '*width=16*', method: 'adamw(*0.99)', set: {lr: 0.2}}]",
        resources="[{task: '*width=8*', cpus: 2}]",
        start="{task: '*width=16*', method: 'adamw(*0.9)', from: sgd, at: 0.5}",
    )
    found = {
        (trial.task_label, trial.method_label): (trial.spec.recipe["lr"], trial.resources.cpus, trial.stage)
        for trial in planned(text).trials
    }
    assert found == {
        ("digits/cnn(width=8)", "adamw(beta2=0.9)"): (0.1, 2, 0),
        ("digits/cnn(width=8)", "adamw(beta2=0.99)"): (0.1, 2, 0),
        ("digits/cnn(width=8)", "sgd"): (0.1, 2, 0),
        ("digits/cnn(width=16)", "adamw(beta2=0.9)"): (0.1, 1, 1),
        ("digits/cnn(width=16)", "adamw(beta2=0.99)"): (0.2, 1, 0),
        ("digits/cnn(width=16)", "sgd"): (0.1, 1, 0),
    }


def test_a_field_that_some_tasks_have_is_set_there_and_nowhere_else(planned: Planner) -> None:
    plan = planned(grid(tasks="[digits/mlp, cartpole/ppo]", recipes="[{set: {gamma: 0.5}}]"))
    found = {trial.spec.task: trial.spec.recipe.get("gamma") for trial in plan.trials}
    assert found == {"digits/mlp": None, "cartpole/ppo": 0.5}


def test_recipes_are_whole_and_derived_fields_follow_what_was_set(planned: Planner) -> None:
    (trial,) = planned(GOOD + "recipes: [{set: {steps: 200, lr: 1}}]\n").trials
    assert trial.spec.recipe["evaluate_every"] == 20
    assert trial.spec.recipe["lr"] == 1.0
    assert isinstance(trial.spec.recipe["lr"], float)
    assert trial.spec.recipe["weight_decay"] == 0.01  # the task's own default


def test_options_of_a_composition_are_keyed_by_member(planned: Planner, registry: Registry) -> None:
    text = "['adamw', 'fed_avg + balanced_adam': {balanced_adam: {beta: {each: [0.5, 0.9]}}}]"
    file_grid = check_grid(
        Draft("grid.yaml", {"name": "x", "tasks": ["digits/mlp"], "methods": parse(text, Where("")), "seeds": 1}),
        registry,
    )
    composed = file_grid.methods[1:]
    assert [method.label for method in composed] == [
        "fed_avg + balanced_adam(balanced_adam.beta=0.5)",
        "fed_avg + balanced_adam(balanced_adam.beta=0.9)",
    ]
    assert [[part.name for part in method.parts] for method in composed] == [["fed_avg", "balanced_adam"]] * 2
    assert [method.parts[1].options["beta"] for method in composed] == [0.5, 0.9]
    assert {method.parts[1].options["decay"] for method in composed} == {"decoupled"}


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ("3", [{"init": 0}, {"init": 1}, {"init": 2}]),
        ("[7, 2]", [{"init": 7}, {"init": 2}]),
        ("{init: 2, split: 2}", [{"init": i, "split": s} for i in (0, 1) for s in (0, 1)]),
        ("{split: 2}", [{"init": 0, "split": 0}, {"init": 0, "split": 1}]),
        ("{init: 3, split: 1, partition: 1}", [{"init": i, "split": 0, "partition": 0} for i in range(3)]),
    ],
)
def test_seeds(planned: Planner, seeds: str, expected: list[dict[str, int]]) -> None:
    assert [trial.spec.seed for trial in planned(grid(seeds=seeds)).trials] == expected


@pytest.mark.parametrize("field", ["cpus", "gpus", "memory", "time", "ranks", "custom"])
def test_a_resource_that_is_left_empty_says_nothing(planned: Planner, field: str) -> None:
    (resources,) = {trial.resources for trial in planned(GOOD + f"resources: {{{field}: }}\n").trials}
    assert resources == Resources()


def test_resources_of_a_cell_are_the_last_word_on_each_field(planned: Planner) -> None:
    plan = planned(
        grid(
            tasks="[digits/mlp, digits/cnn]",
            resources="[{cpus: 2.5, memory: 2GiB, time: 20m}, {task: '*/cnn', gpus: 0.25, time: 90s, memory: null}]",
        )
    )
    mlp, cnn = plan.trials
    assert mlp.resources == Resources(2.5, 0.0, 2 * 2**30, 1200.0)
    assert cnn.resources == Resources(2.5, 0.25, None, 90.0)
    assert (mlp.spec.threads, mlp.spec.device, cnn.spec.threads, cnn.spec.device) == (2, "cpu", 2, "cuda")


def test_threads_and_device_are_part_of_the_content_but_time_and_memory_are_not(planned: Planner) -> None:
    hashes = {
        text: planned(GOOD + f"resources: {text}\n").trials[0].hash
        for text in ("{}", "{cpus: 0.5}", "{cpus: 2}", "{gpus: 1}", "{time: 2h, memory: 500MB}")
    }
    assert hashes["{}"] == hashes["{cpus: 0.5}"] == hashes["{time: 2h, memory: 500MB}"]
    assert len(set(hashes.values())) == 3


def test_extends_replaces_fields_and_adds_recipes(tmp_path: Path, registry: Registry, planned: Planner) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "root.yaml").write_text(grid(name="root", seeds="5", recipes="[{set: {lr: 0.1, steps: 10}}]"))
    (tmp_path / "base.yaml").write_text("name: base\nextends: deep/root.yaml\nmethods: [sgd]\n")
    plan = planned("name: top\nextends: base.yaml\nrecipes: [{set: {lr: 0.2}}]\n")
    assert (plan.name, plan.methods, len(plan.trials)) == ("top", ["sgd"], 5)
    recipe = plan.trials[0].spec.recipe
    assert (recipe["lr"], recipe["steps"]) == (0.2, 10)
    with pytest.raises(GridError, match="name: found nothing"):
        planned("extends: base.yaml\n")


def test_the_text_of_a_grid_is_the_grid_again(tmp_path: Path, registry: Registry, planned: Planner) -> None:
    (tmp_path / "base.yaml").write_text(grid(name="base", recipes="[{set: {lr: {each: [1e-5, 0.003]}, clip: null}}]"))
    plan = planned("name: top\nextends: base.yaml\nprobes: [oui]\n", "seeds=[4, 5]", "recipe.steps=30")
    again = planned(plan.grid_text)
    assert [trial.hash for trial in again.trials] == [trial.hash for trial in plan.trials]


def test_yaml_is_that_of_1_2() -> None:
    text = "{on: yes, lr: 1e-3, octal: 010, time: 1:30}"
    assert parse(text, Where("")) == {"on": "yes", "lr": 0.001, "octal": 10, "time": "1:30"}


def test_overrides_reach_into_lists_and_mappings(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(grid(tasks="[digits/mlp, digits/cnn: {width: 4}]", resources="{cpus: 1}"))
    overrides = ["tasks[1].digits/cnn.width=8", "tasks.0=digits/cnn", "resources.time=3m", "seeds={init: 2}"]
    content = read_draft(tmp_path / "grid.yaml", overrides).content
    assert content["tasks"] == ["digits/cnn", {"digits/cnn": {"width": 8}}]
    assert content["resources"] == {"cpus": 1, "time": "3m"}
    assert content["seeds"] == {"init": 2}


RICH: dict[str, Any] = {
    "name": "rich",
    "tasks": ["digits/mlp", {"digits/cnn": {"width": {"each": [8, 16]}}}],
    "methods": ["adamw", {"balanced_adam": {"beta": {"from": "adamw", "metric": "val/loss"}}}],
    "seeds": {"init": 2, "split": 1},
    "recipes": [
        {"set": {"optimizer": {"each": ["sgd", "adamw"]}, "lr": {"when": {"optimizer": {"sgd": 0.1, "adamw": 0.01}}}}},
        {"task": "*/cnn", "method": "adamw", "set": {"zip": {"steps": [10, 20], "batch": [8, 16]}}},
    ],
    "probes": [{"oui": {"every": 3}}],
    "resources": [{"cpus": 1, "memory": "2GiB", "time": "20m"}],
}
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["", "adamw", "digits/mlp", "sgd + adamw", "a(b)", "../x", "*", "[", "zip", "each", "null", "\x00", "é"]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(
        st.sampled_from(["each", "zip", "when", "from", "metric", "set", "lr", "oui", ""]), st.integers(), max_size=2
    ),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested lists and mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in items for place in places(item, (*path, key))]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_stands_in_a_grid_is_planned_or_answered(data: st.DataObject, registry: Registry) -> None:
    content = YAML(typ="safe", pure=True).load(str(RICH).replace("None", "null"))
    *path, last = data.draw(st.sampled_from(places(content)))
    node = content
    for key in path:
        node = node[key]
    junk = data.draw(JUNK)
    if isinstance(node, dict) and data.draw(st.booleans()):
        node[junk if isinstance(junk, str | int | float) else str(junk)] = node.pop(last)
    else:
        node[last] = junk
    try:
        assert lay_out(check_grid(Draft("grid.yaml", content), registry))
    except GridError as error:
        assert error.file == "grid.yaml"
        assert "\n" not in str(error)
