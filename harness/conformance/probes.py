"""What every probe must pass, on one task of every family."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from harness.conformance.runs import (
    FAMILIES,
    Bench,
    Checks,
    Ran,
    run_before,
    run_short,
    same,
)
from harness.identity import Part
from harness.registry import Item


def probe_checks(item: Item, bench: Bench) -> Checks:
    """The checks of a probe, on each family that it can measure."""
    for task in FAMILIES:
        if set(item.needs) <= bench.registry.build_task(task, {}).offers:
            spec = bench.spec(task, [Part("adam")], [Part(item.name, {"every": 1})])
            probed = lru_cache(partial(run_short, bench.registry, spec))
            yield f"{task}: the trajectory is untouched", partial(_untouched, bench, task, probed)
            yield f"{task}: measures", partial(_measures, probed)


def _untouched(bench: Bench, task: str, probed: Callable[[], Ran]) -> bool:
    without = run_before(bench.registry, bench.spec(task, [Part("adam")]).to_json())
    records = [{**record, "metrics": _without_probes(record["metrics"])} for record in probed().records]
    return [record for record in records if record["metrics"]] == without.records and same(
        probed().weights, without.weights
    )


def _without_probes(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("probe/")}


def _measures(probed: Callable[[], Ran]) -> bool:
    return any(name.startswith("probe/") for record in probed().records for name in record["metrics"])
