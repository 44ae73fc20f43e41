"""Two gloo ranks run digits/mlp through the contract and stay together."""

import json
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import run, told

from harness.conformance import run_short, short_spec
from harness.conformance.runs import train_through
from harness.identity import Part, TrialSpec
from harness.method import Ranks
from harness.recording.attempts import Attempt
from harness.recording.following import Following
from harness.recording.records import TrialRecords
from harness.registry import Registry
from harness.training import loop
from harness.training.forked import on_ranks
from harness.training.loop import Interrupted
from harness.training.ranks import DistributedRanks, loopback
from harness.training.state import weights_digest
from harness.training.trial import run_trial, set_up, settings


@pytest.mark.parametrize(("system", "name"), [("linux", "lo"), ("darwin", "lo0")])
def test_ranks_on_one_machine_meet_on_its_loopback(system: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert loopback() == name


class Counting(Ranks):
    """One rank that counts what it would ask of others."""

    def __init__(self) -> None:
        self.reduced: list[torch.Tensor] = []

    def reduce(self, value: torch.Tensor) -> torch.Tensor:
        self.reduced.append(value)
        return value


@pytest.mark.parametrize(
    "method", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stable_grad", "oui_decay"))]
)
def test_two_ranks_follow_one(method: str, registry: Registry, tmp_path: Path) -> None:
    parts = [Part("stable_grad"), Part("adamw")] if method == "stable_grad" else [Part(method)]
    spec = short_spec(registry, "digits/mlp", parts, precision="float64")
    alone = run_short(registry, spec).weights

    def trained(ranks: Ranks) -> str:
        folder = tmp_path / str(ranks.index)
        with settings(spec), Attempt(folder, spec.hash, spec.to_json(), "test") as attempt:
            training = set_up(spec, registry, attempt, ranks)
            loop.train(training)
        assert torch.equal(training.state.reduce(torch.tensor(float(ranks.index))), torch.tensor(0.5))
        torch.save(training.state.model.state_dict(), f"{folder}.pt")
        return "done"

    assert on_ranks(2, trained) == ["done"] * 2
    first, second = (torch.load(tmp_path / f"{index}.pt", weights_only=True) for index in (0, 1))
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), "ranks have drifted apart"
        torch.testing.assert_close(first[name], expected, rtol=1e-9, atol=1e-11)


def test_a_batch_must_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = DistributedRanks.__new__(DistributedRanks)
    ranks.index, ranks.world = 0, 2
    with pytest.raises(ValueError, match="found 3, must be a multiple of the 2 ranks"):
        ranks.shard({"inputs": torch.zeros(3, 1)})


def test_what_a_rank_gives_arrives_as_it_was() -> None:
    """Values, types and the layout in memory, however deep; a view comes without what lies around it."""
    images = torch.arange(48.0).reshape(2, 2, 3, 4).to(memory_format=torch.channels_last)
    given = {
        "tensors": {"images": images, "view": torch.arange(10)[2:8:2], "one": torch.tensor(2.5, dtype=torch.float64)},
        "rest": [("flags", torch.tensor([True, False])), torch.zeros(0, 3), 7, 0.1, "text", None],
    }

    def received(ranks: Ranks) -> str:
        found = ranks.share(1, given if ranks.index == 1 else {})
        tensors = found["tensors"]
        assert tensors["images"].is_contiguous(memory_format=torch.channels_last)
        return repr({name: (tensor.tolist(), tensor.dtype) for name, tensor in tensors.items()}) + repr(found["rest"])

    expected = repr({name: (tensor.tolist(), tensor.dtype) for name, tensor in given["tensors"].items()})  # type: ignore[attr-defined]
    assert on_ranks(3, received) == [expected + repr(given["rest"])] * 3


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_averages_each_number_once(accumulate: int, registry: Registry, tmp_path: Path) -> None:
    """A mean over ranks waits for the slowest one: the loss that is looked at is the loss that is recorded."""
    spec = short_spec(registry, "digits/mlp", [Part("adamw")], steps=2, accumulate=accumulate)
    ranks = Counting()
    with settings(spec), Attempt(tmp_path, spec.hash, spec.to_json(), "test") as attempt:
        training = set_up(spec, registry, attempt, ranks)
        loop.advance(training)
    assert len(ranks.reduced) == accumulate
    mean = sum(value.item() for value in ranks.reduced) / accumulate
    assert training.interval.take() == {"train/loss": pytest.approx(mean)}


@pytest.mark.parametrize("task", ["digits/mlp", "digits/federated"])
def test_one_rank_evaluates_for_all(task: str, registry: Registry, tmp_path: Path) -> None:
    """Every evaluation is made once, and what is selected by it is the same on every rank."""
    spec = short_spec(registry, task, [Part("adamw")])

    def scored(ranks: Ranks) -> str:
        with settings(spec), Attempt(tmp_path / f"{ranks.world}-{ranks.index}", spec.hash, "", "test") as attempt:
            training = set_up(spec, registry, attempt, ranks)
            calls = []
            evaluate = training.workload.evaluate
            training.workload.evaluate = lambda *given: calls.append(given[1]) or evaluate(*given)  # type: ignore[method-assign,func-returns-value]
            train_through(training)
        return json.dumps([calls, training.scores, training.trajectory])

    (calls, *seen), *together = (json.loads(text) for text in (scored(Ranks()), *on_ranks(2, scored)))
    assert calls[-3:] == ["val", "val", "test"]
    assert [calls for calls, *_ in together] == [calls, []]
    first, second = (seen for _, *seen in together)
    assert first == second
    if task == "digits/federated":
        assert first == seen


def attempted(world: int, registry: Registry, spec: TrialSpec, folder: Path, stop: int | None = None) -> None:
    """One attempt at a trial on so many ranks, the first of which writes its records."""

    def work(ranks: Ranks) -> str:
        kind = Following if ranks.index else Attempt
        with kind(folder, spec.hash, spec.to_json(), "test") as attempt, suppress(Interrupted):
            run_trial(spec, registry, attempt, ranks=ranks, halt=lambda step: step == stop)
        return "done"

    assert on_ranks(world, work) == ["done"] * world


@pytest.mark.parametrize("world", [1, 4])
@pytest.mark.parametrize(
    ("task", "methods", "recipe", "tolerance"),
    [
        ("digits/mlp", ["stable_grad", "adamw"], {"steps": 12, "record_every": 1, "precision": "float64"}, 1e-9),
        ("digits/mlp", ["adamw"], {"steps": 12, "record_every": 1}, 1e-5),
        ("digits/federated", ["scaffold", "adamw"], {"rounds": 4, "clients_per_round": 5}, 0.0),
    ],
)
def test_a_checkpoint_resumes_on_another_world_size(
    task: str,
    methods: list[str],
    recipe: dict[str, Any],
    tolerance: float,
    world: int,
    registry: Registry,
    tmp_path: Path,
) -> None:
    """Two ranks take a trial half way and another number of them to its end: the curve of one rank, undisturbed.

    Within the tolerance that world sizes differ by, and to the bit where ranks share clients and not batches.
    """
    spec = short_spec(registry, task, [Part(method) for method in methods], **recipe)
    half = spec.length // 2
    attempted(2, registry, spec, tmp_path / "resumed", stop=half)
    commit = TrialRecords(tmp_path / "resumed", spec.hash).commit()
    assert commit is not None
    assert commit.step == half
    attempted(world, registry, spec, tmp_path / "resumed")
    alone = run(registry, spec, tmp_path / "alone")
    resumed = TrialRecords(tmp_path / "resumed", spec.hash).result()
    assert resumed is not None
    assert (resumed.attempt, resumed.environment["ranks"]) == (2, world)
    _, mine, curve = told(tmp_path / "resumed", resumed)
    _, final, expected = told(tmp_path / "alone", alone)
    near = partial(pytest.approx, rel=tolerance, abs=tolerance and 1e-12)
    assert mine == near(final)
    assert [record["step"] for record in curve] == [record["step"] for record in expected]
    for record, other in zip(curve, expected, strict=True):
        assert record["metrics"] == near(other["metrics"])


@pytest.mark.parametrize("method", ["shuffled(fed_oui)", "fed_align", "scaffold"])
def test_ranks_without_a_client_keep_up(registry: Registry, tmp_path: Path, method: str) -> None:
    """Four ranks, and rounds of one client or three: hooks that steer the server are called on every rank."""
    recipe = {"rounds": 4, "clients_per_round": 4, "client_dropout": 0.5}
    spec = replace(short_spec(registry, "digits/federated", [Part(method)], **recipe), seed={"init": 2})

    def trained(ranks: Ranks) -> str:
        with settings(spec), Attempt(tmp_path / str(ranks.index), spec.hash, spec.to_json(), "test") as attempt:
            training = set_up(spec, registry, attempt, ranks)
            train_through(training)
        return weights_digest(training.state.model)

    assert on_ranks(4, trained) == [trained(Ranks())] * 4
