from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.activations import gates, pre_activations
from harness.identity import Part, TrialSpec
from harness.recording.attempts import Attempt
from harness.recording.records import Result, TrialRecords
from harness.registry import Registry
from harness.streams import Streams
from harness.training.loop import Interrupted
from harness.training.state import unpack
from harness.training.trial import build_recipe, run_trial
from tasks.control import Acrobot, CartPole, ControlTask
from tasks.ppo import ActorCritic, PPORecipe, Trajectory, generalized_advantages, ppo_objective, rollout_batch
from tasks.ppo_workload import PPO

SMALL = {"env_steps": 512, "envs": 2, "rollout": 64, "batch": 32, "evaluate_every": 1000}  # 16 steps per update
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Registry()


def trial_spec(seed: int = 0, probes: list[Part] | None = None, **recipe: Any) -> TrialSpec:
    return TrialSpec(
        "cartpole/ppo", {"evaluation_episodes": 3}, 1, [Part("adam")], SMALL | recipe, {"init": seed}, probes or []
    )


def run(folder: Path, registry: Registry, spec: TrialSpec, halt: int | None = None) -> Result | dict[str, Any]:
    """The result of a trial; if it is halted after a step, the checkpoint that it left."""
    with Attempt(folder, spec.hash, spec.to_json(), "code") as attempt:
        try:
            return run_trial(spec, registry, attempt, halt=lambda step: step == halt)
        except Interrupted:
            path = attempt.path(attempt.state.checkpoint)
            assert path is not None
            return unpack(path.read_bytes())


def same(left: Any, right: Any) -> bool:
    """Whether two checkpoints, or parts of them, agree bit for bit."""
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left if key != "seconds")
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that must repeat."""
    return {name: value for name, value in metrics.items() if not name.startswith(("time/", "system/"))}


def workload(task: ControlTask | None = None, seed: int = 0, **recipe: Any) -> PPO:
    task = task or CartPole()
    built = task.workload(build_recipe(task, SMALL | recipe), Streams(seed), CPU)
    assert isinstance(built, PPO)
    return built


# --- recipe


def test_default_recipe_is_cleanrl() -> None:
    recipe = build_recipe(CartPole(), {})
    assert (recipe.envs, recipe.rollout, recipe.epochs, recipe.envs * recipe.rollout // recipe.batch) == (4, 128, 4, 4)
    assert (recipe.updates, recipe.steps, recipe.env_steps) == (390, 6240, 199_680)
    assert recipe.resolve() == recipe
    assert Acrobot().recipe().resolve().env_steps == 299_520  # type: ignore[attr-defined]
    assert build_recipe(Acrobot(), {"steps": 32}).env_steps == build_recipe(CartPole(), {"steps": 32}).env_steps == 1024


@pytest.mark.parametrize(
    ("given", "steps", "env_steps"),
    [
        ({"env_steps": 10_000}, 19 * 16, 19 * 512),
        ({"steps": 32}, 32, 1024),
        ({"steps": 33}, 33, 1536),  # ends within an update
        ({"env_steps": 10_000, "envs": 8}, 9 * 32, 9 * 1024),
        ({"env_steps": 1024, "accumulate": 2}, 16, 1024),
        ({"steps": 16, "env_steps": 600}, 16, 512),
    ],
)
def test_budget_in_either_unit(given: dict[str, int], steps: int, env_steps: int) -> None:
    recipe = PPORecipe(**given).resolve()  # type: ignore[arg-type]
    assert (recipe.steps, recipe.env_steps, recipe.length) == (steps, env_steps, steps)
    assert recipe.resolve() == recipe


@pytest.mark.parametrize(
    ("given", "every"),
    [
        ({}, 16),  # four passes over four minibatches
        ({"envs": 8}, 32),
        ({"epochs": 3, "accumulate": 2}, 6),
        ({"env_steps": 500_000}, 16),
        ({"record_every": 7}, 7),
    ],
)
def test_every_update_is_recorded_unless_told_otherwise(given: dict[str, Any], every: int) -> None:
    recipe = PPORecipe(**given).resolve()
    assert recipe.record_every == every and recipe.resolve() == recipe
    assert given.get("record_every") or recipe.steps == recipe.updates * every


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"steps": 3000, "env_steps": 200_000}, "steps"),
        ({"env_steps": 100}, "env_steps"),
        ({"batch": 100}, "batch"),
        ({"accumulate": 3}, "accumulate"),
        ({"gamma": 1.5}, "gamma"),
        ({"envs": 0}, "envs"),
        ({"clip_range": -0.1}, "clip_range"),
    ],
)
def test_recipe_errors_name_the_field(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: found "):
        PPORecipe(**wrong)


def test_learning_rate_is_annealed_per_update() -> None:
    recipe = PPORecipe(env_steps=5120).resolve()
    for iteration in range(1, 11):  # CleanRL: frac = 1.0 - (iteration - 1.0) / num_iterations
        for minibatch in range(16):
            assert recipe.rate_factor((iteration - 1) * 16 + minibatch) == pytest.approx(1.0 - (iteration - 1.0) / 10)


# --- formulas


def test_a_phase_within_an_update_has_its_own_rate() -> None:
    """An update has 16 steps; L-BFGS has no schedule, and the second phase's linear one goes from 1 over 24 steps."""
    last = PPORecipe(steps=32, phases=("adam 24", "lbfgs 8")).resolve()
    assert [last.rate_factor(step) for step in (23, 24, 31)] == [pytest.approx(1 / 3), 1.0, 1.0]
    two = PPORecipe(steps=48, phases=("adam 24", "sgd 24")).resolve()
    assert [two.rate_factor(step) for step in (0, 16, 24, 31, 32, 47)] == pytest.approx([1, 1 / 3, 1, 1, 2 / 3, 2 / 3])


def test_gae_against_the_sum_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    time, envs, gamma, lam = 40, 5, 0.97, 0.9
    rewards, values, next_values = rng.normal(size=(3, time, envs))
    terminated, truncated = rng.random((2, time, envs)) < 0.1
    ended = terminated | truncated
    expected = np.zeros((time, envs))
    for env in range(envs):
        for start in range(time):
            weight = 1.0
            for t in range(start, time):
                bootstrap = 0.0 if terminated[t, env] else gamma * next_values[t, env]
                expected[start, env] += weight * (rewards[t, env] + bootstrap - values[t, env])
                weight *= gamma * lam
                if ended[t, env]:
                    break
    assert (truncated & ~terminated).any() and (truncated & terminated).any()
    computed = generalized_advantages(rewards, values, next_values, terminated, ended, gamma, lam)
    np.testing.assert_allclose(computed, expected, rtol=1e-12, atol=1e-12)


def test_lambda_one_gives_discounted_returns() -> None:
    rewards, nothing = np.random.default_rng(1).normal(size=(6, 1)), np.zeros((6, 1))
    advantages = generalized_advantages(rewards, nothing, nothing, nothing > 0, nothing > 0, 0.5, 1.0)
    assert advantages[0, 0] == pytest.approx(sum(0.5**t * rewards[t, 0] for t in range(6)))


class Fixed(nn.Module):
    """Answers with given logits and values."""

    def __init__(self, logits: Tensor, values: Tensor) -> None:
        super().__init__()
        self.logits, self.values = logits, values

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits, self.values


def test_objective_by_hand() -> None:
    # Probabilities of the taken actions: 0.8, 0.5, 0.25; before: 0.5, 0.5, 0.5. Ratios 1.6, 1, 0.5.
    probabilities = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.75, 0.25]])
    batch = {
        "observations": torch.zeros(3, 1),
        "actions": torch.tensor([0, 1, 1]),
        "log_probs": torch.full((3,), math.log(0.5)),
        "advantages": torch.tensor([1.0, -1.0, -2.0]),
        "values": torch.tensor([0.0, 1.0, 0.0]),
        "returns": torch.tensor([1.0, 1.0, -1.0]),
    }
    recipe = PPORecipe(clip_range=0.2, entropy_coefficient=0.1, value_coefficient=0.5)
    objective = ppo_objective(Fixed(probabilities.log(), torch.tensor([0.5, 1.5, 0.1])), batch, recipe)
    policy_loss = -(1.2 * 1 + 1 * -1 + 0.8 * -2) / 3  # clipped from above, as it is, clipped from below
    entropies = [
        -0.8 * math.log(0.8) - 0.2 * math.log(0.2),
        math.log(2),
        -0.75 * math.log(0.75) - 0.25 * math.log(0.25),
    ]
    entropy = sum(entropies) / 3
    # Clipped values: 0.2 (0.8² > 0.5²), 1.2 (0.2² < 0.5²), 0.1 (the same).
    value_loss = 0.5 * (0.64 + 0.25 + 1.21) / 3
    assert float(objective.value) == pytest.approx(policy_loss - 0.1 * entropy + 0.5 * value_loss)
    assert objective.size == 3 and set(objective.predictions) == {"logits", "values"}
    kl = (0.6 - math.log(1.6) + 0.0 + -0.5 - math.log(0.5)) / 3
    expected = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "approx_kl": kl}
    assert objective.metrics is not None
    found = {name: float(value) for name, value in objective.metrics.items()}
    assert found == pytest.approx(expected | {"clip_fraction": 2 / 3})


def test_objective_against_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, shift = torch.randn(2, 64, 3, generator=generator)
    values, old, returns, advantages = torch.randn(4, 64, generator=generator)
    actions = torch.randint(3, (64,), generator=generator)
    policy = torch.distributions.Categorical(logits=logits)
    before = torch.distributions.Categorical(logits=logits + 0.3 * shift).log_prob(actions)
    ratio = torch.exp(policy.log_prob(actions) - before)
    surrogate = torch.where(advantages > 0, ratio.clamp(max=1.2), ratio.clamp(min=0.8)) * advantages
    expected = -surrogate.mean() - 0.01 * policy.entropy().mean() + 0.25 * (values - returns).square().mean()
    batch = {"observations": logits, "actions": actions, "log_probs": before, "advantages": advantages}
    batch |= {"values": old, "returns": returns}
    objective = ppo_objective(Fixed(logits, values), batch, PPORecipe(clip_values=False))
    torch.testing.assert_close(objective.value, expected)


class FirstValue(nn.Module):
    """Values an observation by its first entry."""

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(observations), 2), observations[:, 0]


def test_bootstrap_at_truncation_and_not_at_termination() -> None:
    # Environment 0 is truncated after step 0 in a state of value 7, environment 1 terminates there; both go on from a
    # reset to a state of value 3, and the rollout is cut in a state of value 2.
    observations = np.array([[[1.0], [1.0]], [[3.0], [3.0]], [[2.0], [2.0]]])
    ended = np.array([[True, True], [False, False]])
    trajectory = Trajectory(
        observations=observations,
        actions=np.zeros((2, 2), dtype=np.int64),
        rewards=np.ones((2, 2)),
        terminated=np.array([[False, True], [False, False]]),
        ended=ended,
        truncated={(0, 0): np.array([7.0])},
    )
    batch = rollout_batch(FirstValue(), trajectory, PPORecipe(gamma=0.9, gae_lambda=0.5), CPU)
    after = 1 + 0.9 * 2 - 3
    expected = torch.tensor([[1 + 0.9 * 7 - 1, 1 - 1], [after, after]])
    torch.testing.assert_close(batch["advantages"].reshape(2, 2), expected)
    torch.testing.assert_close(batch["returns"], batch["advantages"] + batch["values"])
    torch.testing.assert_close(batch["log_probs"], torch.full((4,), math.log(0.5)))


class Countdown(gymnasium.Env[Any, Any]):
    """Counts its steps, and is over after three: with a time limit of three, terminated and truncated at once."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return np.full(1, self.count, dtype=np.float32), 1.0, self.count == 3, False, {}


gymnasium.register("TestCountdown2-v0", Countdown, max_episode_steps=2)
gymnasium.register("TestCountdown3-v0", Countdown, max_episode_steps=3)


@dataclass
class Truncated(ControlTask):
    environment = "TestCountdown2-v0"


@dataclass
class Terminated(ControlTask):
    environment = "TestCountdown3-v0"


@pytest.mark.parametrize(("task", "last"), [(Truncated(), 1), (Terminated(), 2)])
def test_environments_tell_truncation_from_termination(task: ControlTask, last: int) -> None:
    control = workload(task, gamma=0.9, gae_lambda=0.0, normalize_advantages=False)
    batch = control.next_batch()
    count = batch["observations"]
    with torch.no_grad():
        continued = 0.9 * control.model(count + 1)[1]  # also after the last step: not the value of the reset state
    if isinstance(task, Terminated):
        continued[count[:, 0] == last] = 0.0
    assert set(count[:, 0].tolist()) == set(range(last + 1))
    torch.testing.assert_close(batch["returns"], 1 + continued)


# --- workload


def test_probe_inputs_are_a_whole_pass() -> None:
    slow = workload(lr=1e-5)
    assert slow.probe_inputs.shape == (256, 4)
    names = ["actor.act1", "actor.act2", "critic.act1", "critic.act2"]
    assert list(gates(slow.model)) == names
    assert {
        name: tuple(z.shape) for name, z in pre_activations(slow.model, slow.probe_inputs).items()
    } == dict.fromkeys(names, (256, 64))


def test_initial_weights_are_orthogonal() -> None:
    model = workload().model
    assert isinstance(model, ActorCritic)
    for network, last in ((model.actor, 0.01), (model.critic, 1.0)):
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), last), strict=True):
            singular_values = torch.linalg.svdvals(layer.weight.detach())
            torch.testing.assert_close(singular_values, torch.full_like(singular_values, gain))
            assert not layer.bias.any()


def test_minibatches_cover_the_rollout_once_per_epoch() -> None:
    control = workload(normalize_advantages=False)
    epochs = [torch.cat([control.next_batch()["observations"] for _ in range(4)]) for _ in range(4)]
    ordered = [sorted(map(tuple, epoch.tolist())) for epoch in epochs]
    assert ordered[0] == ordered[1] == ordered[2] == ordered[3]
    assert not torch.equal(epochs[0], epochs[1])
    assert control.progress()["env_steps"] == 128
    control.next_batch()
    assert control.progress()["env_steps"] == 256


def test_actions_are_drawn_from_the_policy() -> None:
    control = workload(rollout=1024, envs=4, env_steps=4096)
    with torch.no_grad():
        control.model.actor[-1].weight.zero_()  # type: ignore[index, union-attr]
        control.model.actor[-1].bias.copy_(torch.tensor([1.0, 0.0]))  # type: ignore[index, union-attr]
    batches = [control.next_batch() for _ in range(128)]  # one epoch
    taken = torch.cat([batch["actions"] for batch in batches]) == 0
    probability = 1 / (1 + math.exp(-1))
    assert abs(float(taken.double().mean()) - probability) < 4 * math.sqrt(probability * (1 - probability) / 4096)
    log_probs = torch.cat([batch["log_probs"] for batch in batches]).double()
    torch.testing.assert_close(
        log_probs[taken], torch.full_like(log_probs[taken], math.log(probability)), rtol=1e-6, atol=0
    )


def test_first_minibatch_has_ratio_one_and_normalised_advantages() -> None:
    control = workload()
    batch = control.next_batch()
    metrics = control.objective(control.model, batch).metrics
    assert metrics is not None and abs(float(metrics["approx_kl"])) < 1e-6 and float(metrics["clip_fraction"]) == 0
    assert abs(float(batch["advantages"].mean())) < 1e-6 and float(batch["advantages"].std()) == pytest.approx(1)


class Wrapped(nn.Module):
    """A model that a method put around the actor-critic."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, observations: Tensor) -> Any:
        return self.inner(observations)


def test_a_wrapped_model_acts_alike() -> None:
    plain, wrapped = workload(), workload()
    wrapped.model = Wrapped(wrapped.model)
    assert same(plain.next_batch(), wrapped.next_batch())
    assert plain.evaluate(plain.model, "val") == wrapped.evaluate(wrapped.model, "val")


def test_evaluation_repeats_and_splits_differ() -> None:
    control = workload()
    control.next_batch()
    before = control.state_dict()
    with torch.no_grad():
        scores = [control.evaluate(control.model, split) for split in ("val", "test", "val")]  # type: ignore[arg-type]
    assert scores[0] == scores[2] != scores[1]
    assert all(score["return"] == score["length"] >= score["return_min"] for score in scores)  # reward 1 per step
    assert same(before, control.state_dict())


# --- whole trials


def test_resume_is_exact(tmp_path: Path, registry: Registry) -> None:
    spec = trial_spec()
    undisturbed = run(tmp_path / "a", registry, spec, halt=45)
    interrupted = run(tmp_path / "b", registry, spec, halt=21)
    assert isinstance(interrupted, dict)
    inside = interrupted["workload"]
    assert 0 < inside["position"] < len(inside["order"])  # within a rollout
    assert all(episode["actions"] for episode in inside["episodes"])  # within episodes
    assert same(run(tmp_path / "b", registry, spec, halt=45), undisturbed)
    results = [run(tmp_path / name, registry, spec) for name in "ab"]
    assert isinstance(results[0], Result) and isinstance(results[1], Result) and results[0].status == "finished"
    assert numbers(results[0].metrics) == numbers(results[1].metrics)
    records = [list(TrialRecords(tmp_path / name, spec.hash).records()) for name in "ab"]
    assert [numbers(r["metrics"]) for r in records[0]] == [numbers(r["metrics"]) for r in records[1]]


def test_probe_and_evaluations_leave_the_trajectory(tmp_path: Path, registry: Registry) -> None:
    plain = run(tmp_path, registry, trial_spec(), halt=40)
    watched = run(tmp_path, registry, trial_spec(probes=[Part("oui", {"every": 1})], evaluate_every=7), halt=40)
    assert isinstance(plain, dict) and isinstance(watched, dict)
    for part in ("model", "optimizer", "workload", "streams", "default_stream"):
        assert same(plain[part], watched[part]), part


def test_same_seed_same_numbers(tmp_path: Path, registry: Registry) -> None:
    results = [run(tmp_path / str(index), registry, trial_spec(seed)) for index, seed in enumerate((3, 3, 4))]
    first, second, other = [numbers(result.metrics) for result in results if isinstance(result, Result)]
    assert first == second != other
    assert first["train/env_steps"] == 512


def test_learns_to_balance(tmp_path: Path, registry: Registry) -> None:
    recipe = {"env_steps": 8192, "envs": 4, "rollout": 128, "batch": 128, "lr": 1e-3}
    result = run(tmp_path, registry, trial_spec(100, **recipe))
    assert isinstance(result, Result)
    assert result.metrics["test/return"] > 150  # a random policy reaches 22
    assert result.metrics["time/env_steps_per_second"] > 0
