"""Trials that start where another one was."""

from pathlib import Path

import pytest
import torch
from support import harness, plugin, write_grid

from harness.identity import TrialSpec
from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import Plan, build_plan
from harness.planning.survey import State, survey
from harness.recording.attempts import Attempt
from harness.recording.records import Result, Status
from harness.recording.results import Results
from harness.registry import Registry
from harness.streams import Streams
from harness.training import federation, loop
from harness.training.starting import load_weights
from harness.training.state import Training, unpack, weights_digest
from harness.training.trial import run_trial, set_up, settings
from tasks.federated import FederatedDigits
from tasks.models import mlp

BRANCHES = """
name: branches
tasks: [digits/mlp]
methods: [adamw, sgd, balanced_adam, rides]
seeds: 2
recipes: [{set: {steps: 40, record_every: 10, evaluate_every: 10}}]
start: {from: adamw, at: 0.25}
"""

RIDES = """
@register_method("rides")
class Rides(Method):
    '''Changes nothing: a branch with it is the run that it left.'''
"""


def planned(grid: Path, registry: Registry) -> Plan:
    return build_plan(load_grid(grid, [], registry), registry)


def ended(plan: Plan, results: Results) -> dict[tuple[str, int], Result]:
    found = results.results(trial.hash for trial in plan.trials)
    return {(t.method_label, t.spec.seed["init"]): found[t.hash] for t in plan.trials if t.hash in found}


@pytest.mark.slow
def test_branches_leave_one_run(tmp_path: Path) -> None:
    code = plugin(tmp_path, RIDES)
    registry, results = Registry([code]), Results(tmp_path / "results")
    grid = write_grid(tmp_path, BRANCHES.replace("start:", "#"))
    harness("run", grid, "--results", results.folder, "--plugin", code)
    alone = ended(planned(grid, registry), results)
    grid = write_grid(tmp_path, BRANCHES)
    plan = planned(grid, registry)
    view = survey(plan, results)
    assert view.counts == {State.STALE: 2, State.NEW: 6}, "the source runs again: it has kept no checkpoint"
    harness("run", grid, "--results", results.folder, "--plugin", code)
    branches = ended(plan, results)
    assert {result.status for result in branches.values()} == {Status.FINISHED}
    for seed in range(2):
        trunk = branches["adamw", seed]
        assert trunk.weights == alone["adamw", seed].weights, "keeping a checkpoint changes nothing"
        assert branches["rides", seed].weights == trunk.weights, (
            "the branch that changes nothing is the trunk, to the bit"
        )
        assert branches["sgd", seed].weights not in (trunk.weights, alone["sgd", seed].weights)
        assert [r["step"] for r in results.trial(plan_hash(plan, "sgd", seed)).records()] == [20, 30, 40]
    assert not survey(plan, results).to_run


def branched(tmp_path: Path, text: str) -> Training:
    """The branch of a grid with one trunk and one branch, as it is when it begins."""
    registry = Registry([plugin(tmp_path, RIDES + RIDES.replace("ides", "ides2"))])
    plan = planned(write_grid(tmp_path, text), registry)
    trunk, leaving = sorted(plan.trials, key=lambda trial: bool(trial.spec.requires))
    with Attempt(tmp_path, trunk.hash, trunk.spec.to_json(), "test") as attempt:
        run_trial(trunk.spec, registry, attempt, keep=sorted(plan.kept[trunk.hash]))
    with Attempt(tmp_path, leaving.hash, leaving.spec.to_json(), "test") as attempt, settings(leaving.spec):
        return set_up(leaving.spec, registry, attempt)


def test_a_branch_has_the_learning_rate_of_its_own_recipe(tmp_path: Path) -> None:
    training = branched(
        tmp_path,
        """
        name: rates
        tasks: [digits/mlp]
        methods: [adamw, adam]
        seeds: 1
        recipes: [{set: {steps: 20}}, {method: adam, set: {lr: 0.1, schedule: constant}}]
        start: {from: adamw, at: 0.25}
        """,
    )
    loop.advance(training)
    assert training.state.optimizer is not None
    assert [group["lr"] for group in training.state.optimizer.param_groups] == [0.1]
    moments = next(iter(training.state.optimizer.state.values()))
    assert moments["step"] == 6, "and the moments of the run that it left"


@pytest.mark.parametrize(("at", "optimizer"), [(0.5, torch.optim.Adam), (0.75, torch.optim.LBFGS)])
def test_a_branch_has_the_optimizer_of_the_phase_in_which_it_begins(
    tmp_path: Path, at: float, optimizer: type[torch.optim.Optimizer]
) -> None:
    """At a switch the next step brings the new phase's optimizer, as it does in the run that is left."""
    training = branched(
        tmp_path,
        f"""
        name: phases
        tasks: [poisson/pinn]
        methods: [rides, rides2]
        seeds: 1
        recipes: [{{set: {{steps: 8, phases: [adam 4, lbfgs 4], batch: 16, boundary: 8}}}}]
        start: {{from: rides, at: {at}}}
        """,
    )
    assert isinstance(training.state.optimizer, optimizer)
    loop.advance(training)
    assert isinstance(training.state.optimizer, torch.optim.LBFGS)


def plan_hash(plan: Plan, method: str, seed: int) -> str:
    (trial,) = (t for t in plan.trials if t.method_label == method and t.spec.seed["init"] == seed)
    return trial.hash


def test_weights_of_another_task(tmp_path: Path) -> None:
    registry = Registry([])
    grid = write_grid(
        tmp_path,
        """
        name: transfer
        tasks: [digits/mlp, digits/mlp: {activation: gelu}]
        methods: [adamw, sgd]
        seeds: 1
        recipes: [{set: {steps: 10}}]
        start: {method: sgd, from: adamw, of: digits/mlp(activation=relu)}
        """,
    )
    with pytest.raises(GridError, match=r"start.of.*no task of this grid"):
        planned(grid, registry)
    text = grid.read_text().replace("digits/mlp(activation=relu)", "digits/mlp")
    grid.write_text(text)
    with pytest.raises(GridError, match=r"start.of.*allowed: one of digits/mlp, digits/mlp"):
        planned(grid, registry)


def test_weights_that_fit_are_taken() -> None:
    pretrained, other_head = mlp(8, [6, 4], 10), mlp(8, [6, 4], 3)
    own = other_head.linear3.weight.clone()
    load_weights(other_head, pretrained.state_dict(), exact=False)
    assert torch.equal(other_head.linear1.weight, pretrained.linear1.weight)
    assert torch.equal(other_head.linear2.bias, pretrained.linear2.bias)
    assert torch.equal(other_head.linear3.weight, own)
    with pytest.raises(ValueError, match=r"linear3\.bias"):
        load_weights(mlp(8, [6, 4], 3), pretrained.state_dict(), exact=True)
    with pytest.raises(ValueError, match="weights of another model"):
        load_weights(torch.nn.Conv2d(1, 1, 3), pretrained.state_dict(), exact=False)


PRETRAINED = """
name: pretrained
tasks:
  - digits/pretraining
  - digits/federated: {clients: 6, only_classes: [5, 6, 7, 8, 9]}
methods: [fed_avg, fed_prox, fed_sq]
seeds: 2
leave_out:
  - {task: "*/pretraining", method: fed_prox, because: all start from one plainly trained network}
  - {task: "*/pretraining", method: fed_sq, because: all start from one plainly trained network}
recipes: [{set: {rounds: 3, evaluate_every: 1}}]
start: [{task: "*/federated", from: fed_avg, of: digits/pretraining}]
probes: [clients: {barrier: false}]
"""


def test_methods_of_a_federated_cell_start_from_one_pretrained_network(tmp_path: Path, registry: Registry) -> None:
    """From its weights and head to the bit, and the first round sends them out; the pretraining moved all of them."""
    plan = planned(write_grid(tmp_path, PRETRAINED), registry)
    heads = []
    for seed in range(2):
        trials = [trial for trial in plan.trials if trial.spec.seed["init"] == seed]
        (source,) = (trial for trial in trials if trial.spec.task == "digits/pretraining")
        cell = [trial for trial in trials if trial is not source]
        assert plan.kept[source.hash] == {"weights"}
        with Attempt(tmp_path, source.hash, source.spec.to_json(), "test") as attempt:
            result = run_trial(source.spec, registry, attempt, keep=["weights"])
        pretrained = unpack(attempt.trial.kept("weights").read_bytes())
        with Streams(seed).default("init"):
            model = FederatedDigits().build_model((1, 8, 8))
        assert not any(torch.equal(tensor, pretrained[name]) for name, tensor in model.state_dict().items())
        model.load_state_dict(pretrained)
        assert weights_digest(model) == result.weights
        assert sorted(trial.method_label for trial in cell) == ["fed_avg", "fed_prox", "fed_sq"]
        for trial in cell:
            for name, tensors in beginnings(trial.spec, registry, tmp_path).items():
                assert tensors.keys() == pretrained.keys(), name
                assert all(torch.equal(tensor, pretrained[key]) for key, tensor in tensors.items()), name
        heads.append(pretrained["1.linear2.weight"])
    assert not torch.equal(*heads)


def beginnings(spec: TrialSpec, registry: Registry, results: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights that a trial is set up with, of each of its copies, and those that its first round begins with."""
    with Attempt(results, spec.hash, spec.to_json(), "test") as attempt, settings(spec):
        training = set_up(spec, registry, attempt)
        own = {name: tensor.clone() for name, tensor in training.state.model.state_dict().items()}
        federation.advance(training)
    assert training.state.round is not None
    if spec.method != "fed_sq":
        return {"own": own, "sent": training.state.round.start}
    copies = {prefix: unprefixed(own, prefix) for prefix in ("structural.", "quantitative.")}
    return copies | {"sent": unprefixed(training.state.round.start, "quantitative.")}


def unprefixed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("{from: adamw}", "at: SHARE branches"),
        ("{from: adamw, at: 1.5}", "less than 1"),
        ("{from: adam, at: 0.5}", "no method of this grid"),
        ("{at: 0.5}", "start.from: found nothing"),
        ("{from: adamw, at: 0.5, method: lion}", "matches no method"),
        ("{from: adamw, at: 0.5, form: 1}", "did you mean 'from'"),
    ],
)
def test_bad_starts_are_answered(tmp_path: Path, start: str, said: str) -> None:
    grid = write_grid(tmp_path, BRANCHES.replace(", rides", "").replace("{from: adamw, at: 0.25}", start))
    with pytest.raises(GridError, match=said):
        planned(grid, Registry([]))
