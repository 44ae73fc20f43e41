"""Time to target: when an evaluation first reached it, on the training clock."""

from pathlib import Path

import pytest
from support import run

from harness.conformance import short_spec
from harness.identity import Part
from harness.recording.records import TrialRecords
from harness.registry import Registry
from harness.training.loop import Interrupted

RECIPE = {"steps": 200, "evaluate_every": 10}


def test_the_first_evaluation_at_the_target_counts(registry: Registry, results: Path) -> None:
    spec = short_spec(registry, "digits/mlp", [Part("adamw")], **RECIPE, target=0.8)
    metrics = run(registry, spec, results).metrics
    records = TrialRecords(results, spec.hash).records()
    curve = {r["step"]: r["metrics"]["val/accuracy"] for r in records if "val/accuracy" in r.get("metrics", {})}
    reached = min(step for step, accuracy in curve.items() if accuracy >= 0.8)
    assert 0 < metrics["steps_to_target"] == reached < 200
    assert 0 < metrics["time/to_target"] < metrics["time/train_seconds"]


def test_a_miss_has_no_time(registry: Registry, results: Path) -> None:
    spec = short_spec(registry, "digits/mlp", [Part("adamw")], **RECIPE, target=1.1)
    assert not {"steps_to_target", "time/to_target"} & run(registry, spec, results).metrics.keys()


def test_it_survives_a_resume(registry: Registry, results: Path, tmp_path: Path) -> None:
    spec = short_spec(registry, "digits/mlp", [Part("adamw")], **RECIPE, target=0.8)
    with pytest.raises(Interrupted):
        run(registry, spec, results, halt=lambda step: step == 150)
    resumed, whole = run(registry, spec, results).metrics, run(registry, spec, tmp_path / "whole").metrics
    assert resumed["steps_to_target"] == whole["steps_to_target"]


def test_the_trajectory_does_not_depend_on_it(registry: Registry, results: Path) -> None:
    specs = [short_spec(registry, "digits/mlp", [Part("adamw")], **RECIPE, target=target) for target in (None, 0.8)]
    digests = {run(registry, spec, results).weights for spec in specs}
    assert len(digests) == 1
