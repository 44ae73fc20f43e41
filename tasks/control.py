"""Control: PPO on Gymnasium environments with discrete actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from harness import Recipe, Task, Workload, register_task
from harness.streams import Streams
from tasks.environments import check_environment
from tasks.models import Activation
from tasks.options import positive
from tasks.ppo import PPORecipe
from tasks.ppo_workload import PPO, Setting


@dataclass
class ControlTask(Task):
    """PPO on one environment; `solved` is Gymnasium's reward threshold."""

    offers = frozenset({"gates", "policy"})
    metric = "val/return"
    select = "last"
    recipe_class = PPORecipe
    environment = ""

    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    evaluation_episodes: int = 20
    time_limit: int | None = None

    def __post_init__(self) -> None:
        positive(self, "hidden", "evaluation_episodes", "time_limit")

    def recipe(self) -> Recipe:
        return self.recipe_class()

    def check(self, recipe: Recipe) -> None:
        check_environment(self.environment)

    def unstackable(self, recipe: Recipe) -> str:
        assert isinstance(recipe, PPORecipe)
        if recipe.normalize_observations:
            return "normalize_observations keeps moments in buffers of the model"
        return ""

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        assert isinstance(recipe, PPORecipe)
        setting = Setting(self.environment, self.hidden, self.activation, self.evaluation_episodes, self.time_limit)
        return PPO(setting, recipe, streams, device)


SOURCE = "Gymnasium's {}; Schulman et al. 2017, arXiv 1707.06347"


@dataclass(frozen=True, kw_only=True)
class AcrobotRecipe(PPORecipe):
    """300,000 environment steps unless given."""

    budget: ClassVar[int] = 300_000


@dataclass(frozen=True, kw_only=True)
class LunarLanderRecipe(PPORecipe):
    """A million environment steps unless given."""

    budget: ClassVar[int] = 1_000_000


@register_task("cartpole/ppo")
class CartPole(ControlTask):
    """PPO on CartPole-v1: keep the pole up for 500 steps; the validation return is that of the greedy policy."""

    environment = "CartPole-v1"
    solved = 475.0
    source = SOURCE.format("CartPole-v1")


@register_task("acrobot/ppo")
class Acrobot(ControlTask):
    """PPO on Acrobot-v1: swing the tip above the line; minus one for each step until then, 500 at most."""

    recipe_class = AcrobotRecipe
    environment = "Acrobot-v1"
    solved = -100.0
    source = SOURCE.format("Acrobot-v1")


@register_task("lunarlander/ppo")
class LunarLander(ControlTask):
    """PPO on LunarLander-v3: land between two flags with four actions. Needs Box2D: the extra `box2d`."""

    recipe_class = LunarLanderRecipe
    environment = "LunarLander-v3"
    solved = 200.0
    source = SOURCE.format("LunarLander-v3")


@register_task("mountaincar/ppo")
class MountainCar(ControlTask):
    """PPO on MountainCar-v0, whose reward says nothing before the goal: CleanRL's settings stay at -200."""

    environment = "MountainCar-v0"
    solved = -110.0
    source = SOURCE.format("MountainCar-v0")


@register_task("gymnasium/ppo")
class AnyEnvironment(ControlTask):
    """PPO on any environment that Gymnasium knows by id and whose actions are discrete; observations are made flat."""

    source = "Schulman et al. 2017, arXiv 1707.06347"

    environment: str = "CartPole-v1"
