"""What nothing needs any more is found, and nothing else."""

import json
from pathlib import Path

import pytest
from support import run

from harness.conformance import short_spec
from harness.identity import Part, TrialSpec
from harness.recording.attempts import Attempt
from harness.recording.garbage import garbage
from harness.recording.grids import open_submission
from harness.recording.results import Results
from harness.registry import Registry
from harness.training.loop import Interrupted


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry([])


def submit(results: Results, grid: str, specs: list[TrialSpec]) -> None:
    trials = [
        {
            "hash": spec.hash,
            "spec": json.loads(spec.to_json()),
            "task_label": spec.task,
            "method_label": spec.method,
            "cell": spec.task,
            "seed": "0",
            "code": "test",
        }
        for spec in specs
    ]
    open_submission(results, grid, grid_text="", trials=trials, left_out=[], environment={})


def test_what_is_needed_stays(registry: Registry, tmp_path: Path) -> None:
    results = Results(tmp_path)
    finished, interrupted, unnamed = (short_spec(registry, "digits/mlp", [Part(m)]) for m in ("adamw", "sgd", "adam"))
    submit(results, "small", [finished, interrupted])
    run(registry, finished, tmp_path)
    run(registry, unnamed, tmp_path)
    for stop in (5, 9):
        with pytest.raises(Interrupted):
            run(registry, interrupted, tmp_path, halt=lambda step, stop=stop: step == stop)
    assert garbage(results) == [], "records, and what an interrupted trial goes on from"
    assert [(g.path.name, g.reason) for g in garbage(results, everything=True)] == [
        (unnamed.hash, "no grid names this trial")
    ]


def test_what_is_left_over_goes(registry: Registry, tmp_path: Path) -> None:
    results = Results(tmp_path)
    spec = short_spec(registry, "digits/mlp", [Part("adamw")])
    submit(results, "small", [spec])
    run(registry, spec, tmp_path)
    trial = results.trial(spec.hash)
    for name in ("1/last-7.pt", "1/chunk-00099.jsonl", "kept/checkpoint@0.5.pt"):
        (trial.folder / name).parent.mkdir(exist_ok=True)
        (trial.folder / name).write_bytes(b"0" * 10)
    (tmp_path / "tune-abc").mkdir()
    (tmp_path / "tune-abc" / "state.json").write_text("{}")
    before = list(trial.records())
    found = garbage(results)
    assert {(g.path.name, g.bytes) for g in found} == {
        ("last-7.pt", 10),
        ("chunk-00099.jsonl", 10),
        ("checkpoint@0.5.pt", 10),
        ("tune-abc", 2),
    }
    for item in found:
        item.free()
    assert garbage(results) == []
    assert list(trial.records()) == before
    assert trial.result() is not None


def test_what_is_being_run_is_left_alone(registry: Registry, tmp_path: Path) -> None:
    results = Results(tmp_path)
    spec = short_spec(registry, "digits/mlp", [Part("adamw")])
    with Attempt(tmp_path, spec.hash, spec.to_json(), "test"):
        assert garbage(results, everything=True) == []
    assert len(garbage(results, everything=True)) == 1
