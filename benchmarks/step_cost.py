"""What methods and probes add to a step: ResNet-18 for 32×32 images at batch 32, on synthetic images; and a PINN.

The PINN is Burgers with 64×8 units and 3,020 points, what StableGrad is made for.

Arms take turns, a step each, so that a machine's moods meet all of them alike; each is compared with its own baseline in the
same round. On a CPU the process's own time is counted, which other processes do not lengthen; on a GPU the wall clock.

What happens in few steps only is measured where it happens in every one (`oui_decay` with a gap of 1, the probe at every
step) and then spread over the published cadence: 5 of 500 steps, 1 of 10.

    python benchmarks/step_cost.py --rounds 15
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, resnet18

from harness import Batch, Objective, Recipe, State, Workload
from harness.composition import Composition
from harness.probe import Probe
from harness.registry import Registry
from harness.streams import Streams
from harness.training import stepping
from harness.training.trial import build_recipe
from tasks.physics import BurgersPINN


class Block(nn.Module):
    """torchvision's basic block with an activation of its own at each of its two places."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.block, self.act1, self.act2 = block, nn.GELU(), nn.GELU()
        block.relu = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        b = self.block
        out = b.bn2(b.conv2(self.act1(b.bn1(b.conv1(x)))))
        return self.act2(out + (x if b.downsample is None else b.downsample(x)))


def network() -> nn.Module:
    """ResNet-18 with a stem for small images and GELU at its 17 places."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.relu, model.maxpool = nn.GELU(), nn.Identity()
    for name in ("layer1", "layer2", "layer3", "layer4"):
        setattr(model, name, nn.Sequential(*map(Block, getattr(model, name))))
    return model


class Images(Workload):
    """One synthetic batch, over and over."""

    def __init__(self, device: torch.device, batch: int) -> None:
        self.model = network().to(device)
        self.images = torch.randn(batch, 3, 32, 32, device=device)
        self.labels = torch.randint(10, (batch,), device=device)
        self.probe_inputs = self.images

    def next_batch(self) -> Batch:
        return {"inputs": self.images, "labels": self.labels}

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        logits = model(batch["inputs"])
        return Objective(nn.functional.cross_entropy(logits, batch["labels"]), {"logits": logits}, len(logits))

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        return {}


def images(device: torch.device, batch: int) -> tuple[Workload, Recipe]:
    """ResNet-18 on a synthetic batch."""
    return Images(device, batch), Recipe(steps=10**6, lr=1e-4, weight_decay=1e-2).resolve()


def burgers(device: torch.device, batch: int) -> tuple[Workload, Recipe]:
    """The 64×8 network for Burgers' equation on 3,020 points, whatever the batch."""
    task = BurgersPINN(width=64, depth=8)
    recipe = build_recipe(task, {"steps": 10**6, "batch": 2780, "boundary": 80, "initial": 160})
    return task.workload(recipe, Streams(0), device), recipe


@dataclass
class Arm:
    """A trial whose steps are timed."""

    baseline: str
    methods: dict[str, dict[str, Any]]
    probes: dict[str, dict[str, Any]]
    share: float = 1.0
    """Of the steps in which what is measured happens."""
    trained: Callable[[torch.device, int], tuple[Workload, Recipe]] = images

    def build(self, registry: Registry, device: torch.device, batch: int) -> Callable[[], None]:
        method = Composition([registry.build_method(name, options) for name, options in self.methods.items()])
        workload, recipe = self.trained(device, batch)
        workload.model = method.adapt(workload.model, workload)
        state = State(workload.model, workload, recipe, Streams(0), recipe.length)
        state.optimizer = stepping.build_optimizer(method, state)
        method.start(state)
        probes: list[Probe] = [registry.build_probe(name, options) for name, options in self.probes.items()]

        def step() -> None:
            stepping.set_rate(state, 1.0)
            stepping.take_step(state, method)
            for probe in probes:
                probe.after_step(state)
            state.actions.clear()

        return step


ARMS = {
    "gelu": Arm("", {"gelu": {}, "adamw": {}}, {}),
    "lambda_gelu, learned": Arm("gelu", {"lambda_gelu": {"harden": False}, "adamw": {}}, {}),
    "lambda_gelu, hardening": Arm("gelu", {"lambda_gelu": {"switch": 0.0}, "adamw": {}}, {}),
    "fixed_decay": Arm("", {"fixed_decay": {}, "adamw": {}}, {}),
    "oui_decay": Arm("fixed_decay", {"oui_decay": {"gap": 1}, "adamw": {}}, {}, share=5 / 500),
    "balanced_adam": Arm("gelu", {"gelu": {}, "balanced_adam": {}}, {}),
    "stable_grad": Arm("gelu", {"gelu": {}, "stable_grad": {}, "adamw": {}}, {}),
    "pinn": Arm("", {"adamw": {}}, {}, trained=burgers),
    "stable_grad, pinn": Arm("pinn", {"stable_grad": {}, "adamw": {}}, {}, trained=burgers),
    "oui probe, pairs": Arm("gelu", {"gelu": {}, "adamw": {}}, {"oui": {"form": "pair", "on": "train"}}, share=1 / 10),
}


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval."""
    sample = np.random.default_rng(0).choice(ratios, (draws, len(ratios)))
    low, high = np.quantile(np.median(sample, axis=1), [0.025, 0.975])
    return statistics.median(ratios), float(low), float(high)


def measure(arms: dict[str, Arm], rounds: int, batch: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each arm's steps."""
    registry = Registry()
    steps = {name: arm.build(registry, device, batch) for name, arm in arms.items()}
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for number in range(rounds + 2):
        for name in order:
            _wait(device)
            started = clock()
            steps[name]()
            _wait(device)
            if number >= 2:  # the first ones warm up
                seconds[name].append(clock() - started)
        order = order[1:] + order[:1]
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", help="arms to measure, with their baselines")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = set(options.only or ARMS)
    kept |= {ARMS[name].baseline for name in kept}
    arms = {name: arm for name, arm in ARMS.items() if name in kept}
    seconds = measure(arms, options.rounds, options.batch, torch.device(options.device))
    rows = {}
    for name, arm in arms.items():
        if arm.baseline:
            ratios = [a / b for a, b in zip(seconds[name], seconds[arm.baseline], strict=True)]
            rows[name] = [1 + arm.share * (value - 1) for value in interval(ratios)]
            text = f"{rows[name][0]:.4f}  [{rows[name][1]:.4f}, {rows[name][2]:.4f}]  of {arm.baseline}"
            if arm.share < 1:
                text += f"  ({interval(ratios)[0]:.3f} where it happens, {arm.share:g} of the steps)"
            print(f"{name:24} {text}")
        else:
            print(f"{name:24} {statistics.median(seconds[name]):.3f} s")
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
