"""What every method must pass, on one task of every family."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from harness.composition import objection
from harness.conformance.runs import (
    FAMILIES,
    Bench,
    Checks,
    Ran,
    finite_metrics,
    run_before,
    run_short,
    same,
    same_in_every_stack,
    train_through,
)
from harness.identity import Part, TrialSpec
from harness.method import OWNABLE, Method, Ranks
from harness.recording.attempts import Attempt
from harness.registry import Item
from harness.training.forked import on_ranks
from harness.training.state import weights_digest
from harness.training.trial import set_up, settings


def method_checks(item: Item, bench: Bench) -> Checks:
    """The checks of a method, on each family that it can be trained on."""
    built = bench.registry.build_method(item.name, {})
    yield "owns what can be owned", lambda: set(item.owns) <= OWNABLE
    families = [task for task in FAMILIES if objection(bench.registry.build_task(task, {}), [built]) is None]
    for task in families:
        yield from _method_on(task, built, item.name, bench)
    for task in families[:1]:
        yield f"{task}: compositions keep their order", partial(_order_counts, task, built, item.name, bench)
    if bench.device != "cpu":  # a process that sees a GPU cannot fork ranks that train
        return
    for task in families[:1]:
        if "clients" not in bench.registry.build_task(task, {}).offers:
            yield f"{task}: two ranks stay together", partial(_ranks_stay_together, task, item.name, bench)
    for task in families:
        if "clients" in bench.registry.build_task(task, {}).offers:
            yield f"{task}: two ranks make the rounds of one", partial(_ranks_share_clients, task, item.name, bench)


def _method_on(task: str, built: Method, name: str, bench: Bench) -> Checks:
    spec, plain = bench.spec(task, [Part(name)]), bench.spec(task, [])
    half = 1 if "rounds" in spec.recipe else 11
    first = lru_cache(lambda: run_short(bench.registry, spec))
    yield f"{task}: runs are equal to the bit", lambda: first().same_as(run_short(bench.registry, spec))
    yield f"{task}: resume is exact", lambda: first().same_as(run_short(bench.registry, spec, half))
    if bench.stacks(spec):
        yield f"{task}: a seed has the same bits in every stack", lambda: same_in_every_stack(bench.registry, spec)
    yield f"{task}: leaves nothing behind", lambda: _leaves_nothing(bench, plain)
    yield f"{task}: metrics are finite", lambda: finite_metrics(first())
    if built.disabled:
        options, other, others = built.disabled
        off, baseline = (bench.spec(task, [Part(*part)]) for part in ((name, options), (other, others)))
        yield f"{task}: disabled it is {other}", lambda: _alike(bench, off, baseline)
    if "decay" in built.owns:
        without, still = (bench.spec(task, m, weight_decay=0.0) for m in ([Part(name)], []))
        yield f"{task}: without decay it is plain", lambda: _alike(bench, without, still)


def _leaves_nothing(bench: Bench, plain: TrialSpec) -> bool:
    """The plain run is what it was when it first ran in this process: before the method did, or another one."""
    return (
        run_before(bench.registry, plain.to_json()).same_as(run_short(bench.registry, plain))
        and torch.is_grad_enabled()
    )


def _alike(bench: Bench, spec: TrialSpec, baseline: TrialSpec) -> bool:
    return _trains_alike(run_short(bench.registry, spec), run_before(bench.registry, baseline.to_json()))


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


def _order_counts(task: str, built: Method, name: str, bench: Bench) -> bool:
    """Beside another method, either order trains; the two are different trials, or agree to the bit."""
    other = "fixed_decay" if "optimizer" in built.owns else "adamw"
    if objection(bench.registry.build_task(task, {}), [built, bench.registry.build_method(other, {})]) is not None:
        return True
    parts = [Part(name), Part(other)]
    specs = [bench.spec(task, order) for order in (parts, parts[::-1])]
    one, two = (run_short(bench.registry, spec) for spec in specs)
    return specs[0].hash != specs[1].hash or one.same_as(two)


def _ranks_stay_together(task: str, name: str, bench: Bench) -> bool:
    """After each has trained on its half of every batch, two ranks hold the same weights, to the bit."""
    first, second = on_ranks(2, partial(_outcome, bench.spec(task, [Part(name)]), bench))
    return first == second


def _ranks_share_clients(task: str, name: str, bench: Bench) -> bool:
    """Two ranks that share the clients of each round, one or three of them, end where one does that visits all, to the bit."""
    recipe: dict[str, Any] = {"rounds": 4, "clients_per_round": 4, "client_dropout": 0.5}
    spec = replace(bench.spec(task, [Part(name)], **recipe), seed={"init": 2})
    work = partial(_outcome, spec, bench)
    first, second = on_ranks(2, work)
    return first == second == work(Ranks())


def _outcome(spec: TrialSpec, bench: Bench, ranks: Ranks) -> str:
    """What a run comes to on a rank: its weights, and what was counted on the way."""
    with (
        tempfile.TemporaryDirectory() as folder,
        settings(spec),
        Attempt(Path(folder), spec.hash, spec.to_json(), "check") as attempt,
    ):
        training = set_up(spec, bench.registry, attempt, ranks)
        train_through(training)
        counts = {"samples": training.samples, **training.workload.progress()}
        return f"{weights_digest(training.state.model)} {counts} {training.trajectory}"
