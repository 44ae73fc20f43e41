"""What a plan holds: left-out cells, stages and hashes, code digests, explanations, and the cache."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from planning.malformed import GOOD, grid
from support import plugin, write_grid

from harness.identity import TrialSpec
from harness.planning.errors import GridError
from harness.planning.explaining import explain
from harness.planning.grid import load_grid
from harness.planning.plan import LeftOut, Plan, PlannedTrial, build_plan
from harness.registry import Registry

Planner = Callable[..., Plan]


def test_cells_are_left_out_with_their_reasons(planned: Planner) -> None:
    plan = planned(grid(tasks="[digits/mlp, poisson/pinn]", methods="[adamw, fed_avg, sgd + adam]"))
    assert [(trial.spec.task, trial.spec.method) for trial in plan.trials] == [
        ("digits/mlp", "adamw"),
        ("poisson/pinn", "adamw"),
    ]
    needs = "fed_avg needs clients, which the task does not offer"
    both = "sgd and adam both own the optimizer"
    assert plan.left_out == [
        LeftOut(task, method, reason)
        for task in ("digits/mlp", "poisson/pinn")
        for method, reason in (("fed_avg", needs), ("sgd + adam", both))
    ]


def test_a_grid_does_without_cells_and_says_why(planned: Planner) -> None:
    rule = "leave_out: [{task: '*(activation=relu)', method: sgd, because: too easy}]\n"
    tasks = "[digits/mlp: {activation: relu}, digits/mlp: {activation: tanh}]"
    plan = planned(grid(tasks=tasks, methods="[adamw, sgd]") + rule)
    assert [(trial.task_label, trial.spec.method) for trial in plan.trials] == [
        ("digits/mlp(activation=relu)", "adamw"),
        ("digits/mlp(activation=tanh)", "adamw"),
        ("digits/mlp(activation=tanh)", "sgd"),
    ]
    assert plan.left_out == [LeftOut("digits/mlp(activation=relu)", "sgd", "too easy")]


def test_seeds_run_stacked_where_they_can_and_the_plan_says_where_they_cannot(planned: Planner) -> None:
    text = grid(tasks="[digits/mlp, digits/cnn]", methods="[adamw, oui_decay]")
    plain, plan = planned(text), planned(text + "stacked: true\n")
    assert plain.notes == []
    assert {(t.spec.task, t.spec.method) for t in plan.trials if t.spec.stacked} == {("digits/mlp", "adamw")}
    assert plan.notes == [
        "digits/mlp · oui_decay is not stacked: oui_decay cannot run stacked",
        *(
            f"digits/cnn · {method} is not stacked: the task does not say that its seeds can be trained together"
            for method in ("adamw", "oui_decay")
        ),
    ]
    hashes = {trial.hash for trial in plain.trials}
    assert all((trial.hash in hashes) is not trial.spec.stacked for trial in plan.trials), "part of the identity"
    (stacked,) = [value for value in explain(plan, plan.trials[0].hash) if value.field == "stacked"]
    assert (stacked.value, stacked.origin) == (True, "stacked")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("resources: {cpus: 2}", "it asks for 2 CPUs, and a stack computes on one"),
        ("resources: {gpus: 0.5}", "on a GPU the bits of a seed would depend on the seeds beside it"),
        ("recipes: [{set: {steps: 30, phases: [method 20, lbfgs 10]}}]", "L-BFGS searches along a line"),
        ("tasks: [cartpole/ppo]\nrecipes: [{set: {normalize_observations: true}}]", "normalize_observations keeps"),
        ("tasks: [poisson/pinn: {normalisation: batch}]", "normalisation: batch is not known to keep a seed's bits"),
        (
            "methods: [adamw, balanced_adam: {horizon: {from: adamw, metric: steps_to_best}}]",
            "method.balanced_adam.horizon is taken from another trial, for each seed another value",
        ),
    ],
)
def test_why_seeds_cannot_run_stacked(planned: Planner, more: str, reason: str) -> None:
    given = {line.split(":")[0] for line in more.split("\n")}
    kept = [line for line in GOOD.split("\n") if line.split(":")[0] not in given]
    plan = planned("\n".join([*kept, more, "stacked: true\n"]))
    assert len(plan.notes) == 1
    assert reason in plan.notes[0]
    assert not any(t.spec.stacked for t in plan.trials if f"{t.cell} is not stacked" in plan.notes[0])


def test_a_point_of_tuning_with_one_seed_runs_plainly(planned: Planner) -> None:
    plan = planned(GOOD + "stacked: true\ntuning: {trials: 2, over: {lr: {loguniform: [1e-3, 1e-2]}}}\n")
    assert {trial.spec.stacked for trial in plan.trials if trial.tuning is not None} == {False}
    assert {trial.spec.stacked for trial in plan.reported} == {True}
    assert plan.notes == []


def test_a_probe_that_a_task_cannot_carry_is_left_out_there_alone(tmp_path: Path, planned: Planner) -> None:
    file = plugin(
        tmp_path,
        """
        from harness import Probe, register_probe

        @register_probe("labelled")
        class Labelled(Probe):
            needs = frozenset({"labels"})
        """,
    )
    plan = planned(
        grid(tasks="[digits/mlp, poisson/pinn]", probes="[oui, labelled: {every: 5}]"), known=Registry([file])
    )
    probes = {
        trial.spec.task: [(part.name, part.options["every"]) for part in trial.spec.probes] for trial in plan.trials
    }
    assert probes == {"digits/mlp": [("labelled", 5), ("oui", 0)], "poisson/pinn": [("oui", 0)]}
    assert plan.notes == ["probe labelled is left out of poisson/pinn: it needs labels, which the task does not offer"]


def test_the_order_of_probes_changes_nothing(tmp_path: Path, planned: Planner) -> None:
    file = plugin(
        tmp_path,
        """
        from harness import Probe, register_probe

        @register_probe("other")
        class Other(Probe):
            pass
        """,
    )
    known = Registry([file])
    hashes = {
        planned(GOOD + f"probes: {text}\n", known=known).trials[0].hash for text in ("[oui, other]", "[other, oui]")
    }
    assert len(hashes) == 1


SELECTING = grid(
    methods="[adamw, balanced_adam: {beta: {from: adamw, metric: val/accuracy}}, sgd]",
    seeds="2",
    recipes="[{method: sgd, set: {momentum: {from: balanced_adam, metric: val/loss}}}, {set: {lr: {each: [0.1, 0.2]}}}]",
)


def test_trials_that_take_values_come_in_later_stages(planned: Planner) -> None:
    plan = planned(SELECTING)
    assert [{trial.method_label for trial in stage} for stage in plan.stages] == [{"adamw"}, {"balanced_adam"}, {"sgd"}]
    by_place = {(t.method_label, t.spec.recipe["lr"], t.spec.seed["init"]): t for t in plan.trials}
    for (method, lr, seed), trial in by_place.items():
        if method == "adamw":
            assert trial.spec.requires == []
            continue
        source, path = (
            ("adamw", "methods.0.beta") if method == "balanced_adam" else ("balanced_adam", "recipe.momentum")
        )
        (required,) = trial.spec.requires
        assert (required.path, required.hash) == (path, by_place[source, lr, seed].hash)
    filled = by_place["sgd", 0.1, 0].spec.with_values({"recipe.momentum": 0.25})
    assert (by_place["sgd", 0.1, 0].spec.recipe["momentum"], filled.recipe["momentum"]) == (None, 0.25)


def test_a_dependents_hash_follows_what_it_requires_and_nothing_else(planned: Planner) -> None:
    def trials(*overrides: str) -> dict[tuple[str, float, int], PlannedTrial]:
        found = planned(SELECTING, *overrides).trials
        return {(trial.method_label, trial.spec.recipe["lr"], trial.spec.seed["init"]): trial for trial in found}

    before, extended = trials(), trials("seeds=3")
    assert {key: extended[key].hash for key in before} == {key: trial.hash for key, trial in before.items()}
    warmed = trials("recipes.0.method=adamw", "recipes.0.set={warmup: 5}")
    for key, trial in before.items():
        method, lr, seed = key
        if method == "balanced_adam":  # the same but for what it requires
            assert replace(trial.spec, requires=[]) == replace(warmed[key].spec, requires=[])
            assert warmed[key].spec.requires[0].hash == warmed["adamw", lr, seed].hash
            assert warmed[key].hash != trial.hash


def test_what_requires_a_left_out_cell_is_left_out(planned: Planner) -> None:
    plan = planned(
        grid(
            methods="[adamw, fed_avg, sgd]",
            recipes="[{method: sgd, set: {momentum: {from: fed_avg, metric: val/loss}}}]",
        )
    )
    assert [trial.method_label for trial in plan.trials] == ["adamw"]
    needs = "fed_avg needs clients, which the task does not offer"
    assert plan.left_out == [
        LeftOut("digits/mlp", "fed_avg", needs),
        LeftOut("digits/mlp", "sgd", f"takes a value from digits/mlp · fed_avg, which is left out: {needs}"),
    ]


def test_the_hash_depends_on_the_content_and_not_on_how_it_is_written(planned: Planner) -> None:
    first = planned(GOOD + "recipes: [{set: {lr: 0.01, steps: 50, clip: 1}}]\n").trials[0]
    second = planned(
        "seeds: [0]\nmethods: [{adamw: {}}]\ntasks: [{digits/mlp: {activation: relu, hidden: [64, 64]}}]\nname: other\n"
        "recipes: [{set: {clip: 1.0, lr: 1e-2}}, {set: {steps: 50}}]\n"
    ).trials[0]
    assert first.hash == second.hash
    shuffled = dict(reversed(first.spec.recipe.items()))
    assert replace(first.spec, recipe=shuffled).hash == first.hash
    assert TrialSpec.from_json(first.spec.to_json()).hash == first.hash
    assert replace(first.spec, recipe=shuffled | {"lr": 0.02}).hash != first.hash


def test_the_same_trial_in_two_grids_has_one_hash(planned: Planner) -> None:
    alone = planned(GOOD).trials[0]
    among = planned(grid(name="wide", tasks="[digits/cnn, digits/mlp]", methods="[sgd, adamw]", seeds="3")).trials
    assert [trial.cell for trial in among if trial.hash == alone.hash] == ["digits/mlp · adamw"]


SCALED = """
    SCALE = {scale}

    @register_method("scaled")
    class Scaled(Method):
        {comment}
        factor: float = 1.0

        def before_step(self, state):
            for parameter in state.model.parameters():
                parameter.grad.mul_(SCALE)
"""


def test_a_comment_does_not_change_the_code_but_a_number_does(tmp_path: Path, planned: Planner) -> None:
    def trial(name: str, scale: str, comment: str) -> tuple[str, str]:
        (tmp_path / name).mkdir()
        file = plugin(tmp_path / name, SCALED.format(scale=scale, comment=comment))
        (planned_trial,) = planned(grid(methods="[scaled]"), known=Registry([file])).trials
        return planned_trial.hash, planned_trial.code

    first = trial("first", "0.5", "# one way to say it")
    assert trial("second", "0.5", '"""Another."""') == first
    hash, code = trial("third", "0.25", "# one way to say it")
    assert hash == first[0]
    assert code != first[1]


def test_what_an_author_raises_is_told_at_the_value_that_it_is_about(tmp_path: Path, planned: Planner) -> None:
    file = plugin(
        tmp_path,
        """
        @register_method("picky")
        class Picky(Method):
            width: int = 1

            def __post_init__(self):
                if self.width > 3:
                    raise ValueError(f"width: found {self.width}, must be at most 3")
                if self.width > 2:
                    raise KeyError("inner")
        """,
    )
    known = Registry([file])
    with pytest.raises(GridError, match=r"grid.yaml: methods\[0\]\.width: found 4, must be at most 3"):
        planned(grid(methods="[picky: {width: {each: [1, 4]}}]"), known=known)
    with pytest.raises(GridError, match=r"grid.yaml: methods\[0\]: KeyError: 'inner'"):
        planned(grid(methods="[picky: {width: 3}]"), known=known)


def test_explain_says_where_each_value_came_from(tmp_path: Path, planned: Planner) -> None:
    (tmp_path / "base.yaml").write_text(grid(name="base", recipes="[{set: {warmup: 3, lr: 0.5}}]"))
    plan = planned(
        "name: top\nextends: base.yaml\ntasks: [digits/cnn: {width: 8}]\nmethods: [balanced_adam: {beta: 0.9}]\n"
        "recipes: [{set: {lr: 0.1}}, {task: '*/cnn', set: {steps: 30}}]\nprobes: [oui]\nresources: {cpus: 2}\n",
        "recipe.batch=16",
    )
    rows = {row.field: (row.value, row.origin) for row in explain(plan, plan.trials[0].hash[:6])}
    expected = {
        "task": ("digits/cnn", "tasks[0]"),
        "task.width": (8, "tasks[0].width"),
        "task.activation": ("relu", "default"),
        "method.balanced_adam.beta": (0.9, "methods[0].beta"),
        "method.balanced_adam.decay": ("decoupled", "default"),
        "recipe.lr": (0.1, "recipes[0].set.lr"),
        "recipe.steps": (30, "recipes[1].set.steps"),
        "recipe.batch": (16, "--set"),
        "recipe.weight_decay": (0.01, "task default"),
        "recipe.evaluate_every": (3, "derived"),
        "seed.init": (0, "seeds"),
        "probe.oui.every": (0, "default"),
        "threads": (2, "resources.cpus"),
        "device": ("cpu", "default"),
    }
    assert {field: rows[field] for field in expected} == expected
    assert rows["recipe.warmup"] == (3, f"recipes[0].set.warmup in {tmp_path / 'base.yaml'}")


def test_explain_names_the_trial_that_a_value_is_taken_from(planned: Planner) -> None:
    plan = planned(SELECTING)
    source, dependent = plan.stages[0][0], plan.stages[1][0]
    rows = {row.field: (row.value, row.origin) for row in explain(plan, dependent.hash)}
    assert rows["method.balanced_adam.beta"] == (f"val/accuracy of trial {source.hash}", "methods[1].beta")
    with pytest.raises(GridError, match=f"found '', the hash of {len(plan.trials)} trials, allowed: that of one"):
        explain(plan, "")


def test_a_plan_is_the_same_after_it_was_text(planned: Planner) -> None:
    plan = planned(SELECTING, "probes=[oui]", "resources={time: 5m}")
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.digest == plan.digest
    assert all(trial.spec.hash == trial.hash for trial in again.trials)


def test_the_digest_is_that_of_the_trials(planned: Planner) -> None:
    two = grid(tasks="[digits/mlp, digits/cnn]", seeds="2")
    digest = planned(two).digest
    assert planned(grid(tasks="[digits/cnn, digits/mlp]", seeds="[1, 0]")).digest == digest
    assert planned(two, "seeds=3").digest != digest
    assert planned(two, "recipe.lr=0.5").digest != digest


BLOCKED = """
    import sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "numpy", "ray", "mlflow", "sklearn"):
                raise ImportError(name + " is blocked")

    sys.meta_path.insert(0, Blocked())
    from pathlib import Path
    from harness.planning.errors import GridError
    from harness.planning.grid import load_grid
    from harness.planning.plan import build_plan
    from harness.planning.survey import survey
    from harness.recording.results import Results
    from harness.registry import Registry

    registry = Registry()
    folder = Path(sys.argv[1])
    plan = build_plan(load_grid(folder / "grid.yaml", [], registry), registry)
    assert len(survey(plan, Results(folder)).to_run) == 2
    print(plan.digest)
    try:
        load_grid(folder / "bad.yaml", [], registry)
    except GridError as error:
        print(error.field)
    try:
        build_plan(load_grid(folder / "grid.yaml", ["seeds=3"], registry), registry)
    except GridError as error:
        print(error.message)
"""


def test_a_known_grid_is_planned_and_a_bad_one_refused_without_torch(
    tmp_path: Path, planned: Planner, cache: Path
) -> None:
    Registry()  # fills the index of the registries in this test's cache
    plan = planned(grid(seeds="2"))
    (tmp_path / "bad.yaml").write_text(grid(seeds="[-2]"))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCKED), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"HARNESS_CACHE": str(cache)},
        timeout=600,
    )
    assert done.stdout.splitlines() == [plan.digest, "seeds[0]", "ImportError: torch is blocked"], done.stderr


def test_a_cached_plan_that_cannot_be_read_is_made_anew(planned: Planner, cache: Path) -> None:
    plan = planned(GOOD)
    (kept,) = (cache / "plans").glob("*.json")
    for text in ("", "{}", '{"format": 1}', kept.read_text()[:-50]):
        kept.write_text(text)
        assert planned(GOOD) == plan


def test_the_cache_knows_another_grid_and_another_override(planned: Planner, cache: Path) -> None:
    planned(GOOD)
    planned(GOOD, "recipe.lr=0.5")
    planned(GOOD + "probes: [oui]\n")
    assert len(list((cache / "plans").glob("*.json"))) == 3
    assert planned(GOOD + "# a comment\n").grid_text == planned(GOOD).grid_text
    assert len(list((cache / "plans").glob("*.json"))) == 3


def test_without_a_cache_it_takes_longer_and_nothing_else(
    planned: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    (tmp_path / "grid.yaml").write_text(GOOD)
    plan = build_plan(load_grid(tmp_path / "grid.yaml", [], registry), registry)
    assert len(plan.trials) == 1


def test_data_that_is_replaced_is_noticed(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan from the cache holds as long as the files that its tasks read are as they were."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    table = tmp_path / "table.txt"
    table.write_text("1 2 3")
    source = f"""
        from pathlib import Path
        from harness.inputs import depends_on
        from tasks.supervised import DigitsMLP
        @register_task("own/mlp")
        class Own(DigitsMLP):
            def data_digest(self):
                depends_on([Path({str(table)!r})])
                return Path({str(table)!r}).read_text()
        """
    own = Registry([plugin(tmp_path, source)])
    file = write_grid(tmp_path, "{name: own, tasks: [own/mlp], methods: [adamw], seeds: 1}")
    first = build_plan(load_grid(file, [], own), own)
    assert build_plan(load_grid(file, [], own), own).trials[0].hash == first.trials[0].hash
    table.write_text("1 2 4")
    assert build_plan(load_grid(file, [], own), own).trials[0].hash != first.trials[0].hash
