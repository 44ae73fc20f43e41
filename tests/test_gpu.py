"""What a GPU alone can show: `make gpu`. Without one these are skipped by name."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import first_gradient, harness, plugin, results_of, run, timeless, write_grid
from test_conformance import ITEMS, conforms

from harness.conformance import run_short, short_spec
from harness.identity import Part, TrialSpec
from harness.recording.records import Status
from harness.registry import Item, Registry
from harness.resources import REPEATABLE_CUBLAS
from tasks.models import image_model
from tasks.models.library import SMALLEST, VISION
from tasks.physics import BurgersPINN, KdVPINN, PhysicsTask

os.environ.setdefault(*REPEATABLE_CUBLAS)  # before any test begins with CUDA

pytestmark = [
    pytest.mark.slow,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees"),
]

SHARED = """
name: shared
tasks: [digits/mlp, digits/cnn]
methods: [adamw, watches + adamw, grabs + adamw]
seeds: 3
resources: {cpus: 1, gpus: 0.25}
recipes: [{set: {steps: 60, evaluate_every: 20}}]
leave_out: [{task: digits/cnn, method: "grabs*", because: once is enough}]
"""

WATCHING = '''
import torch

@register_method("watches")
class Watches(Method):
    """Fails where the model is not on a GPU."""
    def after_step(self, state):
        assert next(state.model.parameters()).is_cuda

@register_method("blind")
class Blind(Method):
    """Fails where there is a GPU to be seen."""
    def after_step(self, state):
        assert torch.cuda.device_count() == 0

@register_method("grabs")
class Grabs(Method):
    """Takes a third of the GPU's memory, and touches it."""
    def after_step(self, state):
        total = torch.cuda.get_device_properties(0).total_memory
        self.taken = torch.ones(total // 3, dtype=torch.uint8, device="cuda")
'''


ASKING = """
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

@register_method("asks")
class Asks(Method):
    def after_step(self, state):
        assert DEVICE == next(state.model.parameters()).device.type == "cuda"
"""


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: f"{item.kind} {item.name}")
def test_conformance(item: Item, registry: Registry) -> None:
    conforms(item, registry, "cuda")


@pytest.mark.parametrize("name", VISION)
def test_every_model_of_images_has_fixed_bits(name: str) -> None:
    """Of each operation in it there is a deterministic version, forwards and backwards, as it is evaluated."""
    size = max(64, SMALLEST.get(name, 0))
    model = image_model(name, (3, size, size), 10).cuda().eval()
    images = torch.randn(4, 3, size, size, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(model(images).square().sum(), [*model.parameters()]) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second))


def test_attention_has_fixed_bits_over_a_longer_run(registry: Registry) -> None:
    spec = replace(short_spec(registry, "stdlib/gpt_tiny", [Part("adamw")], steps=150), device="cuda")
    assert run_short(registry, spec).same_as(run_short(registry, spec))


FAMILIES = ["digits/mlp", "digits/cnn", "stdlib/gpt_tiny", "poisson/pinn", "digits/federated", "cartpole/ppo"]


@pytest.mark.parametrize(
    ("task", "precision", "tolerance"),
    [*((task, "float64", 1e-8) for task in FAMILIES), *((task, "float32", 2e-3) for task in FAMILIES[:5])],
)
def test_the_curve_is_that_of_the_cpu(task: str, precision: str, tolerance: float, registry: Registry) -> None:
    """Two implementations of every kernel: the same initial weights, batches and draws, and the rest up to rounding."""
    spec = short_spec(registry, task, [Part("adamw")], precision=precision)
    here, there = run_short(registry, spec), run_short(registry, replace(spec, device="cuda"))
    for one, other in zip(here.records, there.records, strict=True):
        assert other["metrics"] == pytest.approx(one["metrics"], rel=tolerance, abs=tolerance), one["step"]


@pytest.mark.parametrize("kind", [BurgersPINN, KdVPINN])
def test_compiled_derivatives_agree_with_plain_ones(kind: type[PhysicsTask]) -> None:
    """Inductor writes kernels of its own for a GPU."""
    (value, slopes), (other, others) = (first_gradient(kind(compiled=compiled), "cuda") for compiled in (True, False))
    torch.testing.assert_close(value, other, rtol=1e-5, atol=0)
    for one, two in zip(slopes, others, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid whose trials have a quarter of a GPU each."""
    folder = tmp_path_factory.mktemp("shared")
    grid = write_grid(folder, SHARED)
    harness("run", grid, "--results", folder / "results", "--plugin", plugin(folder, WATCHING), status=1)
    return folder


def test_trials_that_share_a_gpu_have_the_numbers_that_they_have_alone(shared: Path) -> None:
    registry = Registry([shared / "plugin.py"])
    results = results_of(shared / "results")
    finished = {hash: result for hash, result in results.items() if result.status is Status.FINISHED}
    assert len(finished) == 12
    for hash, result in finished.items():
        spec = TrialSpec.from_json((shared / "results" / "trials" / hash / "trial.json").read_text())
        alone = run(registry, spec, shared / "alone")
        assert timeless(alone.metrics) == timeless(result.metrics)
        assert alone.weights == result.weights
        assert result.metrics["system/peak_gpu_memory_mb"] > 0
        assert result.environment["gpu"] == torch.cuda.get_device_name(0)


def test_a_share_limits_the_memory_of_a_trial_and_of_no_neighbour(shared: Path) -> None:
    ended = [result for result in results_of(shared / "results").values() if result.status is not Status.FINISHED]
    assert [(result.status, result.steps) for result in ended] == [(Status.OUT_OF_MEMORY, 1)] * 3
    for result in ended:
        assert re.fullmatch(r"OutOfMemoryError: CUDA out of memory. Tried to .+; [\d.]+ GiB allowed", result.reason)


def test_a_plugin_may_ask_for_a_gpu_at_its_import(tmp_path: Path) -> None:
    """Many do. CUDA itself, asked there, would work in no process that is forked after it, which is every trial's."""
    text = "name: asking\ntasks: [digits/mlp]\nmethods: [asks + adamw]\nseeds: 1\nresources: {gpus: 1}\n"
    grid = write_grid(tmp_path, text + "recipes: [{set: {steps: 20}}]\n")
    harness("run", grid, "--plugin", plugin(tmp_path, ASKING), "--results", tmp_path / "results")


def test_a_trial_that_asked_for_none_sees_no_gpu(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, "name: blind\ntasks: [digits/mlp]\nmethods: [blind + adamw]\nseeds: 2\n")
    harness("run", grid, "--results", tmp_path, "--plugin", plugin(tmp_path, WATCHING), "--set", "recipe.steps=20")
    assert {result.status for result in results_of(tmp_path).values()} == {Status.FINISHED}


def test_the_doctor_sees_what_torch_sees(tmp_path: Path) -> None:
    assert f"torch sees {torch.cuda.device_count()}" in harness("doctor", "--results", tmp_path)


def test_nccl_reduces_and_shares() -> None:
    """One rank: two would need two GPUs. What goes through NCCL comes back as it was, and gradients are averaged in place."""
    source = """
import torch
from harness.resources import Seat
from harness.training.ranks import join
ranks = join(Seat(0, 1, "127.0.0.1:29471", "cuda"))
assert ranks.device.type == "cuda"
value = torch.arange(4.0, device="cuda")
assert torch.equal(ranks.reduce(value), value)
images = torch.arange(48.0).reshape(2, 2, 3, 4).to(memory_format=torch.channels_last)
found = ranks.share(0, {"images": images, "rest": [torch.tensor([True, False]), 7, "text"]})
assert found["images"].is_cuda and torch.equal(found["images"].cpu(), images)
assert found["rest"][1:] == [7, "text"]
model = torch.nn.Linear(3, 2).cuda()
model(torch.ones(5, 3, device="cuda")).sum().backward()
before = [p.grad.clone() for p in model.parameters()]
ranks.average_gradients(model, 0.5)
assert all(torch.equal(p.grad, 0.5 * g) for p, g in zip(model.parameters(), before))
print("nccl ok")
"""
    told = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert "nccl ok" in told.stdout, told.stderr
