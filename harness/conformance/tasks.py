"""What every task must pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from harness.activations import gates
from harness.conformance.runs import (
    Bench,
    Checks,
    run_short,
    same,
    same_in_every_stack,
)
from harness.identity import Part, TrialSpec
from harness.registry import Item
from harness.streams import Streams
from harness.task import FederatedWorkload, Workload
from harness.training.state import pack
from harness.training.trial import build_recipe, settings


def task_checks(item: Item, bench: Bench) -> Checks:
    """The checks of a task: short trials, and its workload's promises, under the settings of a trial."""
    spec = bench.spec(item.name, [Part("sgd")])
    for name, check in _checks(item, bench, spec):
        yield name, partial(_in_settings, spec, check)


def _in_settings(spec: TrialSpec, check: Callable[[], bool]) -> bool:
    with settings(spec):
        return check()


def _checks(item: Item, bench: Bench, spec: TrialSpec) -> Checks:
    half = 1 if "rounds" in spec.recipe else 11
    yield "runs are equal to the bit", lambda: run_short(bench.registry, spec).same_as(run_short(bench.registry, spec))
    yield "resume is exact", lambda: run_short(bench.registry, spec).same_as(run_short(bench.registry, spec, half))
    yield "the objective is pure", lambda: _objective_is_pure(_workload(bench, spec))
    yield "batches have one shape", lambda: _batches_have_one_shape(_workload(bench, spec))
    yield "evaluation changes nothing", lambda: _evaluation_changes_nothing(_workload(bench, spec))
    yield "the metric is scored", lambda: item.metric.split("/", 1)[1] in _scores(bench, spec)
    yield "methods share initial weights", lambda: _shares_start(item, bench)
    if bench.stacks(spec):
        yield "a seed has the same bits in every stack", lambda: same_in_every_stack(bench.registry, spec)
    if "gates" in item.offers:
        yield "each gate is called once", lambda: _each_gate_once(_workload(bench, spec))


def _workload(bench: Bench, spec: TrialSpec) -> Workload:
    task = bench.registry.build_task(spec.task, spec.task_options)
    workload = task.workload(build_recipe(task, spec.recipe), Streams(spec.seed), torch.device(spec.device))
    if isinstance(workload, FederatedWorkload):
        workload.enter(workload.participants(0)[0], 0)
    return workload


def _objective_is_pure(workload: Workload) -> bool:
    batch = workload.next_batch()
    before = _content(workload)
    values = [workload.objective(workload.model, batch).value for _ in range(2)]
    return torch.equal(*values) and before == _content(workload)


def _content(workload: Workload) -> bytes:
    """What an objective may not change: buffers are not part of it, since BatchNorm keeps running statistics."""
    return pack({"workload": workload.state_dict(), "model": dict(workload.model.named_parameters())})


def _batches_have_one_shape(workload: Workload) -> bool:
    first = int(isinstance(workload, FederatedWorkload))  # the last batch of a client's epoch may be smaller
    shapes = [{name: tensor.shape[first:] for name, tensor in workload.next_batch().items()} for _ in range(3)]
    return all(shape == shapes[0] for shape in shapes)


def _evaluation_changes_nothing(workload: Workload) -> bool:
    before = pack(workload.state_dict())
    with torch.no_grad():
        first, second = (workload.evaluate(workload.model, "val") for _ in range(2))
    return first == second and before == pack(workload.state_dict())


def _scores(bench: Bench, spec: TrialSpec) -> dict[str, float]:
    workload = _workload(bench, spec)
    with torch.no_grad():
        return workload.evaluate(workload.model, "val")


def _shares_start(item: Item, bench: Bench) -> bool:
    specs = [bench.spec(item.name, [Part(method)]) for method in ("sgd", "adam")]
    workloads = [_workload(bench, spec) for spec in specs]
    batches = [workload.next_batch() for workload in workloads]
    return same(*(workload.model.state_dict() for workload in workloads)) and same(*batches)


def _each_gate_once(workload: Workload) -> bool:
    calls = dict.fromkeys(gates(workload.model), 0)

    def count(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: calls.__setitem__(name, calls[name] + 1)

    for name, gate in gates(workload.model).items():
        gate.register_forward_hook(count(name))
    with torch.no_grad():
        workload.model(workload.probe_inputs)
    return bool(calls) and set(calls.values()) == {1}
