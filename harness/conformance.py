"""What every registered task, method and probe must pass: `harness describe NAME --check`, and the project's own tests.

Each check runs short trials of real tasks and compares bits, so a plugin's author gets these tests for free.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.activations import gates
from harness.composition import objection, unstackable
from harness.identity import Part, TrialSpec
from harness.method import OWNABLE, Method, Ranks
from harness.recording.records import Attempt, Status, TrialRecords
from harness.registry import Item, Registry
from harness.streams import Streams
from harness.task import FederatedWorkload, Workload
from harness.training import federation, loop
from harness.training.forked import on_ranks
from harness.training.loop import Interrupted
from harness.training.state import Training, pack, weights_digest
from harness.training.together import run_stack
from harness.training.trial import Course, build_recipe, set_up, settings

FAMILIES: dict[str, dict[str, Any]] = {
    "digits/mlp": {},
    "digits/cnn": {},
    "cartpole/ppo": {"evaluation_episodes": 2},
    "poisson/pinn": {},
    "digits/federated": {},
}
"""One task of every family, on which methods and probes are checked, with options that keep it short."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Ran:
    """What a short trial left: the final weights, and its records without times."""

    weights: dict[str, Tensor]
    records: list[dict[str, Any]]
    training: Training

    def same_as(self, other: Ran) -> bool:
        """Equal to the bit."""
        return self.records == other.records and same(self.weights, other.weights)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def short_spec(
    registry: Registry, task: str, methods: Sequence[Part], probes: Sequence[Part] = (), **overrides: Any
) -> TrialSpec:
    """A trial of a few steps (a few rounds, for a federated task)."""
    item, small = registry.item("task", task), FAMILIES.get(task, {})
    options = {name: small.get(name, schema["default"]) for name, schema in item.options.items()} if small else {}
    built = registry.build_task(task, options)
    short = {"rounds": 3} if _counts_rounds(built.recipe_class) else {"steps": 20}
    cadence = {"evaluate_every": 2 if "rounds" in short else 8, "record_every": 1 if "rounds" in short else 4}
    recipe = asdict(build_recipe(built, short | cadence | overrides))
    return TrialSpec(task, options, built.version, list(methods), recipe, {"init": 0}, list(probes))


def _counts_rounds(recipe_class: type) -> bool:
    return any(field.name == "rounds" for field in fields(recipe_class))


def run_short(registry: Registry, spec: TrialSpec, interrupt_at: int | None = None) -> Ran:
    """Runs a short trial; with `interrupt_at` it stops at that step, and goes on in a second attempt."""
    with tempfile.TemporaryDirectory() as folder, settings(spec):
        if interrupt_at is not None:
            with Attempt(Path(folder), spec.hash, spec.to_json(), "check") as attempt:
                try:
                    _train(set_up(spec, registry, attempt), halt=lambda step: step == interrupt_at)
                except Interrupted:
                    pass
                else:
                    raise AssertionError(f"the trial did not stop at step {interrupt_at}")
        with Attempt(Path(folder), spec.hash, spec.to_json(), "check") as attempt:
            training = set_up(spec, registry, attempt)
            _train(training)
            attempt.commit(training.state.step)
        records = [_timeless(record) for record in TrialRecords(Path(folder), spec.hash).records()]
    weights = {name: value.detach().clone() for name, value in training.state.model.state_dict().items()}
    return Ran(weights, records, training)


def _train(training: Training, halt: Callable[[int], bool] = lambda step: False) -> None:
    advance = federation.advance if isinstance(training.workload, FederatedWorkload) else loop.advance
    loop.train(training, advance, halt=halt)


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what may differ between two runs of one trial."""
    metrics = record.get("metrics", {})
    kept = {name: value for name, value in metrics.items() if not name.startswith(("time/", "system/"))}
    return {**record, "time": 0, "metrics": kept}


def check_item(item: Item, registry: Registry) -> Iterator[Verdict]:
    """All checks of one item. A check that raises has failed, with what it raised."""
    checks = {"task": _task_checks, "method": _method_checks, "probe": _probe_checks}[item.kind]
    for name, check in [("has a docstring", lambda: bool(item.summary)), *checks(item, registry)]:
        try:
            yield Verdict(name, bool(check()))
        except Exception as error:
            yield Verdict(name, False, f" ({type(error).__name__}: {error})")


Checks = Iterator[tuple[str, Callable[[], bool]]]


def _task_checks(item: Item, registry: Registry) -> Checks:
    spec = short_spec(registry, item.name, [Part("sgd")])
    half = 1 if "rounds" in spec.recipe else 11
    yield "runs are equal to the bit", lambda: run_short(registry, spec).same_as(run_short(registry, spec))
    yield "resume is exact", lambda: run_short(registry, spec).same_as(run_short(registry, spec, half))
    yield "the objective is pure", lambda: _objective_is_pure(_workload(registry, spec))
    yield "batches have one shape", lambda: _batches_have_one_shape(_workload(registry, spec))
    yield "evaluation changes nothing", lambda: _evaluation_changes_nothing(_workload(registry, spec))
    yield "the metric is scored", lambda: item.metric.split("/", 1)[1] in _scores(registry, spec)
    yield "methods share initial weights", lambda: _shares_start(item, registry)
    if _stacks(registry, spec):
        yield "a seed has the same bits in every stack", lambda: _same_in_every_stack(registry, spec)
    if "gates" in item.offers:
        yield "each gate is called once", lambda: _each_gate_once(_workload(registry, spec))


def _stacks(registry: Registry, spec: TrialSpec) -> bool:
    """Whether seeds of a trial may be trained together."""
    task = registry.build_task(spec.task, spec.task_options)
    methods = [registry.build_method(part.name, part.options) for part in spec.methods]
    return not (task.unstackable(build_recipe(task, spec.recipe)) or unstackable(methods))


def _same_in_every_stack(registry: Registry, spec: TrialSpec) -> bool:
    """Alone, and among two others."""
    (alone,) = _run_stacked(registry, spec, [1])
    return alone == _run_stacked(registry, spec, [0, 1, 2])[1]


def _run_stacked(registry: Registry, spec: TrialSpec, seeds: list[int]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The digest of the weights and the records of each seed."""
    specs = [replace(spec, seed={"init": seed}, stacked=True) for seed in seeds]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        attempts = [held.enter_context(Attempt(Path(folder), s.hash, s.to_json(), "check")) for s in specs]
        courses = [Course(s, attempt, {}) for s, attempt in zip(specs, attempts, strict=True)]
        run_stack(courses, registry)
        ended = [course.result for course in courses]
        if wrong := [result.error for result in ended if result and result.status is not Status.FINISHED]:
            raise AssertionError(wrong[0])
        return [(r.weights, list(map(_timeless, TrialRecords(Path(folder), r.hash).records()))) for r in ended if r]


def _workload(registry: Registry, spec: TrialSpec) -> Workload:
    with settings(spec):
        task = registry.build_task(spec.task, spec.task_options)
        workload = task.workload(build_recipe(task, spec.recipe), Streams(spec.seed), torch.device("cpu"))
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


def _scores(registry: Registry, spec: TrialSpec) -> dict[str, float]:
    workload = _workload(registry, spec)
    with torch.no_grad():
        return workload.evaluate(workload.model, "val")


def _shares_start(item: Item, registry: Registry) -> bool:
    specs = [short_spec(registry, item.name, [Part(method)]) for method in ("sgd", "adam")]
    workloads = [_workload(registry, spec) for spec in specs]
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


def _method_checks(item: Item, registry: Registry) -> Checks:
    built = registry.build_method(item.name, {})
    yield "owns what can be owned", lambda: set(item.owns) <= OWNABLE
    families = [task for task in FAMILIES if objection(registry.build_task(task, {}), [built]) is None]
    for task in families:
        yield from _method_on(task, built, item.name, registry)
    for task in families[:1]:
        yield f"{task}: compositions keep their order", partial(_order_counts, task, built, item.name, registry)
        if "clients" not in registry.build_task(task, {}).offers:
            yield f"{task}: two ranks stay together", partial(_ranks_stay_together, task, item.name, registry)
    for task in families:
        if "clients" in registry.build_task(task, {}).offers:
            yield f"{task}: two ranks make the rounds of one", partial(_ranks_share_clients, task, item.name, registry)


def _method_on(task: str, built: Method, name: str, registry: Registry) -> Checks:
    spec, plain = short_spec(registry, task, [Part(name)]), short_spec(registry, task, [])
    half = 1 if "rounds" in spec.recipe else 11
    first = lru_cache(lambda: run_short(registry, spec))
    yield f"{task}: runs are equal to the bit", lambda: first().same_as(run_short(registry, spec))
    yield f"{task}: resume is exact", lambda: first().same_as(run_short(registry, spec, half))
    if _stacks(registry, spec):
        yield f"{task}: a seed has the same bits in every stack", lambda: _same_in_every_stack(registry, spec)
    yield f"{task}: leaves nothing behind", lambda: _leaves_nothing(registry, plain)
    yield f"{task}: metrics are finite", lambda: _finite(first())
    if built.disabled:
        options, other, others = built.disabled
        off, baseline = (short_spec(registry, task, [Part(*part)]) for part in ((name, options), (other, others)))
        yield f"{task}: disabled it is {other}", lambda: _alike(registry, off, baseline)
    if "decay" in built.owns:
        without, still = (short_spec(registry, task, m, weight_decay=0.0) for m in ([Part(name)], []))
        yield f"{task}: without decay it is plain", lambda: _alike(registry, without, still)


@lru_cache(maxsize=32)
def _run_before(registry: Registry, spec: str) -> Ran:
    return run_short(registry, TrialSpec.from_json(spec))


def _leaves_nothing(registry: Registry, plain: TrialSpec) -> bool:
    """The plain run is what it was when it first ran in this process: before the method did, or another one."""
    return _run_before(registry, plain.to_json()).same_as(run_short(registry, plain)) and torch.is_grad_enabled()


def _alike(registry: Registry, spec: TrialSpec, baseline: TrialSpec) -> bool:
    return _trains_alike(run_short(registry, spec), _run_before(registry, baseline.to_json()))


def _trains_alike(one: Ran, other: Ran) -> bool:
    """Equal weights and metrics to the bit. What a method said of its actions may differ, tensors of its own, and their bytes."""
    metrics = [
        [{name: value for name, value in record["metrics"].items() if "bytes" not in name} for record in ran.records]
        for ran in (one, other)
    ]
    shared = one.weights.keys() & other.weights.keys()
    kept = [{name: ran.weights[name] for name in shared} for ran in (one, other)]
    trained = [list(filter(None, kept)) for kept in metrics]
    return trained[0] == trained[1] and bool(shared) and same(*kept)


def _order_counts(task: str, built: Method, name: str, registry: Registry) -> bool:
    """Beside another method, either order trains; the two are different trials, or agree to the bit."""
    other = "fixed_decay" if "optimizer" in built.owns else "adamw"
    if objection(registry.build_task(task, {}), [built, registry.build_method(other, {})]) is not None:
        return True
    parts = [Part(name), Part(other)]
    specs = [short_spec(registry, task, order) for order in (parts, parts[::-1])]
    one, two = (run_short(registry, spec) for spec in specs)
    return specs[0].hash != specs[1].hash or one.same_as(two)


def _ranks_stay_together(task: str, name: str, registry: Registry) -> bool:
    """After each has trained on its half of every batch, two ranks hold the same weights, to the bit."""
    first, second = on_ranks(2, partial(_outcome, short_spec(registry, task, [Part(name)]), registry))
    return first == second


def _ranks_share_clients(task: str, name: str, registry: Registry) -> bool:
    """Two ranks that share the clients of each round end where one does that visits all, to the bit."""
    work = partial(_outcome, short_spec(registry, task, [Part(name)]), registry)
    first, second = on_ranks(2, work)
    return first == second == work(Ranks())


def _outcome(spec: TrialSpec, registry: Registry, ranks: Ranks) -> str:
    """What a run comes to on a rank: its weights, and what was counted on the way."""
    with (
        tempfile.TemporaryDirectory() as folder,
        settings(spec),
        Attempt(Path(folder), spec.hash, spec.to_json(), "check") as attempt,
    ):
        training = set_up(spec, registry, attempt, ranks)
        _train(training)
        counts = {"samples": training.samples, **training.workload.progress()}
        return f"{weights_digest(training.state.model)} {counts} {training.trajectory}"


def _finite(ran: Ran) -> bool:
    metrics = (record.get("metrics", {}) for record in ran.records)
    return all("loss" in name or value == value for values in metrics for name, value in values.items())


def _probe_checks(item: Item, registry: Registry) -> Checks:
    for task in FAMILIES:
        if set(item.needs) <= registry.build_task(task, {}).offers:
            spec = short_spec(registry, task, [Part("adam")], [Part(item.name, {"every": 1})])
            probed = lru_cache(partial(run_short, registry, spec))
            yield f"{task}: the trajectory is untouched", partial(_untouched, registry, task, probed)
            yield f"{task}: measures", partial(_measures, probed)


def _untouched(registry: Registry, task: str, probed: Callable[[], Ran]) -> bool:
    without = _run_before(registry, short_spec(registry, task, [Part("adam")]).to_json())
    records = [{**record, "metrics": _without_probes(record["metrics"])} for record in probed().records]
    return [record for record in records if record["metrics"]] == without.records and same(
        probed().weights, without.weights
    )


def _without_probes(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("probe/")}


def _measures(probed: Callable[[], Ran]) -> bool:
    return any(name.startswith("probe/") for record in probed().records for name in record["metrics"])
