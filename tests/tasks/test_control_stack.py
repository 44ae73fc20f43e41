"""PPO under several seeds as one: each seed plays and learns what it would alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Told, run, seeded, together, told
from torch import nn

from harness.identity import Part, TrialSpec
from harness.recording.records import TrialRecords
from harness.registry import Registry
from tasks.stacked import linear

RECIPE = {"env_steps": 512, "envs": 2, "rollout": 64, "batch": 32, "evaluate_every": 1000, "record_every": 7}


def cell(task: str = "cartpole/ppo", **recipe: Any) -> TrialSpec:
    return TrialSpec(task, {"evaluation_episodes": 2}, 1, [Part("adam")], RECIPE | recipe, {"init": 0})


@pytest.fixture(scope="module")
def alone(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Told]:
    results = tmp_path_factory.mktemp("alone")
    return {seed: told(results, together(registry, results, cell(), [seed])[0]) for seed in range(5)}


@pytest.mark.parametrize("seeds", [[3, 1], [0, 1, 2, 3, 4]])
def test_a_seed_has_the_same_bits_at_every_width(
    registry: Registry, alone: dict[int, Told], tmp_path: Path, seeds: list[int]
) -> None:
    for seed, result in zip(seeds, together(registry, tmp_path, cell(), seeds), strict=True):
        assert told(tmp_path, result) == alone[seed]


def test_a_stack_goes_on_within_a_rollout(registry: Registry, alone: dict[int, Told], tmp_path: Path) -> None:
    together(registry, tmp_path, cell(), [0, 1], halt=21)  # 16 steps per rollout
    together(registry, tmp_path, cell(), [2], halt=35)
    for seed, result in zip([2, 0, 1], together(registry, tmp_path, cell(), [2, 0, 1]), strict=True):
        assert told(tmp_path, result) == alone[seed]


@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        ("cartpole/ppo", {}),
        ("mountaincar/ppo", {"normalize_rewards": True, "critic_lr": 1e-3, "rollout": 128}),  # cut off at 200 steps
        ("acrobot/ppo", {"accumulate": 2, "normalize_advantages": False, "clip_values": False}),
    ],
)
def test_a_stack_follows_the_plain_path(registry: Registry, tmp_path: Path, task: str, recipe: dict[str, Any]) -> None:
    """In double precision, to rounding: the same actions in the same environments."""
    spec = cell(task, precision="float64", **recipe)
    for seed, result in enumerate(together(registry, tmp_path, spec, [0, 1])):
        _, metrics, records = told(tmp_path, result)
        plain = run(registry, replace(spec, seed={"init": seed}), tmp_path)
        _, expected, expected_records = told(tmp_path, plain)
        assert metrics == pytest.approx(expected, rel=1e-8, abs=1e-10)
        for one, other in zip(records, expected_records, strict=True):
            assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-7, abs=1e-9)


def test_a_stack_counts_what_it_costs_by_shares(registry: Registry, tmp_path: Path) -> None:
    together(registry, tmp_path, cell(), [0, 1])
    found = [TrialRecords(tmp_path, seeded(cell(), seed).hash).result() for seed in (0, 1)]
    seconds = [result.metrics["time/train_seconds"] for result in found if result]
    whole = found[0].ended - found[0].started  # type: ignore[union-attr]
    assert seconds[0] == pytest.approx(seconds[1])
    assert sum(seconds) < whole


@pytest.mark.parametrize("count", [1, 2, 3])
def test_linear_layers_of_several_seeds(count: int) -> None:
    layers = [nn.Linear(5, 1).double() for _ in range(count)]
    inputs = torch.randn(count, 7, 5, dtype=torch.float64)
    weights, biases = torch.stack([layer.weight for layer in layers]), torch.stack([layer.bias for layer in layers])
    expected = torch.stack([layer(x) for layer, x in zip(layers, inputs, strict=True)])
    torch.testing.assert_close(linear(inputs, weights, biases), expected)
    torch.testing.assert_close(linear(inputs, weights), expected - biases.unsqueeze(1))
