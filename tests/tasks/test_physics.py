"""The PINN workload: points, the objective, the reference, and trials of every equation."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import first_gradient, run, together, told
from torch import Tensor

from harness.composition import Composition
from harness.conformance import run_short, short_spec
from harness.identity import Part, TrialSpec
from harness.inputs import unchanged, watching
from harness.method import State
from harness.recording.records import Status
from harness.registry import Registry
from harness.streams import Streams
from harness.training import stepping
from harness.training.ranks import DistributedRanks
from harness.training.trial import build_recipe, settings
from tasks.collocation import Collocation
from tasks.data.place import MissingData
from tasks.derivatives import Jet
from tasks.equations import Burgers, Equation, KdV, Kovasznay, Poisson, TaylorGreen
from tasks.informed import PhysicsInformed, PhysicsRecipe, relative_l2
from tasks.physics import BurgersPINN, KdVPINN, NavierStokesPINN, PhysicsTask, PoissonPINN

EQUATIONS = ["allen_cahn", "burgers", "helmholtz", "kdv", "navier_stokes", "poisson", "schrodinger"]
CPU = torch.device("cpu")


def workload(seed: int = 0, **recipe: float) -> PhysicsInformed:
    task = PoissonPINN()
    built = task.workload(build_recipe(task, recipe), Streams(seed), CPU)
    assert isinstance(built, PhysicsInformed)
    return built


# --- the workload


def test_points_lie_where_they_must() -> None:
    batch = workload(batch=100, boundary=40).next_batch()
    assert batch["interior"].shape == (100, 2) and batch["boundary"].shape == (40, 2)
    assert batch["interior"].abs().max() < 1
    for coordinate, value in Poisson().faces:
        assert int((batch["boundary"][:, coordinate] == value).sum()) == 10
    inside = batch["interior"].double()
    assert inside.mean(dim=0).abs().max() < 3 / math.sqrt(3 * 100)  # three standard errors of a uniform mean


def test_held_out_points_are_fixed_and_apart() -> None:
    first, second = workload(batch=100), workload(batch=7)
    first.next_batch()
    for split in ("val", "test"):
        with torch.no_grad():
            assert first.evaluate(first.model, split) == second.evaluate(second.model, split)
    sets = [first._scored["val"], first._scored["test"], first.probe_inputs]
    sets.append(first.next_batch()["interior"])
    rows = [{tuple(point) for point in points.tolist()} for points in sets]
    assert len(set.union(*rows)) == sum(map(len, rows)) == 4096 + 4096 + 256 + 100


def test_the_objective_is_its_formula() -> None:
    built = workload(residual_weight=0.5, boundary_weight=7.0)
    batch = built.next_batch()
    objective = built.objective(built.model, batch)
    residual, misfit = objective.predictions["residual"], objective.predictions["boundary"]
    expected = 0.5 * (residual**2).mean() + 7 * (misfit**2).mean()
    assert objective.value.item() == pytest.approx(expected.item(), rel=1e-6)
    slopes = torch.autograd.grad(objective.value, [residual, misfit])
    torch.testing.assert_close(slopes[0], 0.5 * 2 * residual / len(residual))
    torch.testing.assert_close(slopes[1], 2 * 7 * misfit / len(misfit))
    assert objective.size == 128 + 64


def test_ranks_share_both_kinds_of_points() -> None:
    ranks = DistributedRanks.__new__(DistributedRanks)
    ranks.world = 2
    batch = workload(batch=6, boundary=4).next_batch()
    parts = []
    for ranks.index in (0, 1):
        parts.append(ranks.shard(batch))
    for name, tensor in batch.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PoissonPINN(depth=0), "depth: found 0, must be positive"),
        (lambda: PoissonPINN(width=-3), "width: found -3, must be positive"),
        (lambda: BurgersPINN(viscosity=4e-4), "viscosity: found 0.0004, allowed: at least 0.0005"),
        (lambda: BurgersPINN(viscosity=0.0), "viscosity: found 0.0, allowed: at least 0.0005"),
        (lambda: PoissonPINN(normalisation="batch", route="forward"), "route: found forward, allowed: auto, taylor"),
        (lambda: build_recipe(KdVPINN(), {"boundary": 1}), "boundary: found 1, allowed: at least 2"),
        (lambda: PhysicsRecipe(boundary=0), "boundary: found 0, must be positive"),
        (lambda: PhysicsRecipe(boundary_weight=-1.0), "boundary_weight: found -1.0, must be positive"),
        (lambda: PhysicsRecipe(residual_weight=0.0), "residual_weight: found 0.0, must be positive"),
        (lambda: PhysicsRecipe(batch=0), "batch: found 0, must be positive"),
        (lambda: PhysicsRecipe(accumulate=2, resample=0), "accumulate: found 2, allowed: 1 where resample is 0"),
        (lambda: PhysicsRecipe(accumulate=2, resample=3), "accumulate: found 2, allowed: 1 where resample is 3"),
    ],
)
def test_bad_options_say_what_is_allowed(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


# --- trials


def test_the_default_trial_solves_the_equation(registry: Registry, results: Path) -> None:
    task = PoissonPINN()
    recipe = vars(build_recipe(task, {}))
    result = run(registry, TrialSpec("poisson/pinn", {}, 2, [Part("adamw")], recipe, {"init": 0}), results)
    assert result.status == Status.FINISHED
    assert result.metrics["test/relative_l2"] <= 0.02


def bare_burgers(model: torch.nn.Module, batch: dict[str, Tensor], steps: int) -> list[float]:
    """Adam on Burgers as PINN codes write it: reverse mode, term by term. Returns the first step's terms."""
    optimizer, terms = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(steps):
        inside = batch["interior"].clone().requires_grad_()
        u = model(inside)
        slope = torch.autograd.grad(u.sum(), inside, create_graph=True)[0]
        bent = torch.autograd.grad(slope[:, 0].sum(), inside, create_graph=True)[0]
        residual = slope[:, 1:] + u * slope[:, :1] - 0.01 / math.pi * bent[:, :1]
        start = model(batch["initial"]) + torch.sin(math.pi * batch["initial"][:, :1])
        losses = [residual.square().mean(), model(batch["boundary"]).square().mean(), start.square().mean()]
        terms = terms or [float(loss.detach()) for loss in losses]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    return terms


class Falls(Equation):
    """u' = -u, which has an initial condition and no faces."""

    coordinates, domain, derivatives = "t", ((0.0, 1.0),), ("t",)

    def residual(self, points: Tensor, u: Jet) -> Tensor:
        return u["t"] + u.value

    def reference(self, points: Tensor) -> Tensor:
        return torch.exp(-points)


class FallsPINN(PhysicsTask):
    def recipe(self) -> PhysicsRecipe:
        return PhysicsRecipe(steps=1, batch=16, initial=4, boundary_weight=7.0, initial_weight=1000.0)

    def equation(self) -> Equation:
        return Falls()


def test_each_condition_has_its_own_weight() -> None:
    task = FallsPINN()
    built = task.workload(build_recipe(task, {}), Streams(0), CPU)
    found = built.objective(built.model, built.next_batch())
    assert found.metrics is not None and set(found.metrics) == {"residual", "initial"}
    expected = float(found.metrics["residual"] + 1000.0 * found.metrics["initial"])
    assert float(found.value.detach()) == pytest.approx(expected, rel=1e-6)


def test_burgers_goes_the_way_of_a_bare_loop() -> None:
    """From the same weights and points, with so many points that the backward pass by hand is taken."""
    task, steps = BurgersPINN(), 30
    recipe = build_recipe(task, {"steps": steps})
    built = task.workload(recipe, Streams(0), CPU)
    assert isinstance(built, PhysicsInformed)
    batch = built.next_batch()
    assert {name: len(points) for name, points in batch.items()} == {"interior": 2780, "boundary": 80, "initial": 160}
    bare = copy.deepcopy(built.model)
    expected = bare_burgers(bare, batch, steps)

    state, method = State(built.model, built, recipe, Streams(0), steps), Composition([])
    state.optimizer = stepping.build_optimizer(method, state)
    stepping.take_step(state, method)
    terms = state.objectives[0].metrics
    assert terms is not None
    assert [float(terms[name]) for name in ("residual", "boundary", "initial")] == pytest.approx(expected, rel=1e-5)
    for _ in range(steps - 1):
        stepping.take_step(state, method)
    for ours, theirs in zip(built.model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_float64_is_float64_throughout(registry: Registry) -> None:
    runs = {
        precision: run_short(registry, short_spec(registry, "poisson/pinn", [Part("sgd")], precision=precision))
        for precision in ("float32", "float64")
    }
    for precision, ran in runs.items():
        dtype = getattr(torch, precision)
        built = ran.training.workload
        assert isinstance(built, PhysicsInformed)
        assert {tensor.dtype for tensor in ran.weights.values()} == {dtype}
        with settings(short_spec(registry, "poisson/pinn", [], precision=precision)):
            assert built.next_batch()["boundary"].dtype == built.probe_inputs.dtype == dtype
        assert built.objective(built.model, built._held_out["val"]).value.dtype == dtype
    last = [ran.records[-1]["metrics"]["val/relative_l2"] for ran in runs.values()]
    assert all(0 < value < 2 for value in last)


def test_resume_is_exact(registry: Registry) -> None:
    spec = short_spec(registry, "poisson/pinn", [Part("adamw")])
    assert run_short(registry, spec).same_as(run_short(registry, spec, interrupt_at=11))


def test_probing_leaves_the_trajectory_alone(registry: Registry) -> None:
    plain = run_short(registry, short_spec(registry, "poisson/pinn", [Part("adamw")]))
    probed = run_short(registry, short_spec(registry, "poisson/pinn", [Part("adamw")], [Part("oui", {"every": 1})]))
    assert all(torch.equal(plain.weights[name], probed.weights[name]) for name in plain.weights)
    measured = probed.records[-1]["metrics"]
    assert {"probe/oui/act1", "probe/oui/act2", "probe/oui/act3", "probe/oui/mean"} <= measured.keys()


def test_stacked_seeds_follow_the_plain_path(registry: Registry, tmp_path: Path) -> None:
    spec = short_spec(registry, "poisson/pinn", [Part("adamw")], precision="float64")
    for seed, result in enumerate(together(registry, tmp_path, spec, [0, 1])):
        _, metrics, _ = told(tmp_path, result)
        plain = run(registry, replace(spec, seed={"init": seed}), tmp_path)
        assert metrics == pytest.approx(told(tmp_path, plain)[1], rel=1e-8)


@pytest.mark.parametrize("name", EQUATIONS)
def test_every_equation_trains_and_resumes(registry: Registry, name: str) -> None:
    small = {"batch": 40, "boundary": 8} | ({"initial": 8} if name in ("allen_cahn", "burgers", "kdv") else {})
    spec = short_spec(registry, f"{name}/pinn", [Part("adam")], **small)
    spec = replace(spec, task_options={"depth": 2, "width": 8})
    whole = run_short(registry, spec)
    assert whole.same_as(run_short(registry, spec, interrupt_at=11))
    losses = [r["metrics"]["val/loss"] for r in whole.records if "val/loss" in r.get("metrics", {})]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "options", [{"normalisation": "batch"}, {"normalisation": "weight"}, {"normalisation": "layer"}, {"residual": True}]
)
def test_other_architectures_train_and_resume(registry: Registry, options: dict[str, object]) -> None:
    spec = short_spec(registry, "burgers/pinn", [Part("adam")], batch=40, boundary=8, initial=8)
    spec = replace(spec, task_options={"depth": 2, "width": 8, "init": "gain", **options})
    assert run_short(registry, spec).same_as(run_short(registry, spec, interrupt_at=11))


@pytest.mark.parametrize("recipe", [{"sampling": "sobol"}, {"sampling": "adaptive", "resample": 3}, {"resample": 0}])
def test_every_sampling_resumes(registry: Registry, recipe: dict[str, object]) -> None:
    spec = short_spec(registry, "burgers/pinn", [Part("adam")], batch=40, boundary=8, initial=8, **recipe)
    assert run_short(registry, spec).same_as(run_short(registry, spec, interrupt_at=11))


def test_points_are_kept_as_long_as_the_recipe_says() -> None:
    def draws(resample: int) -> list[int]:
        built = workload(resample=resample)
        seen = [built.next_batch()["interior"][0, 0].item() for _ in range(6)]
        return [seen.index(value) for value in seen]

    assert draws(1) == [0, 1, 2, 3, 4, 5]
    assert draws(2) == [0, 0, 2, 2, 4, 4]
    assert draws(0) == [0] * 6


def test_sobol_points_fill_the_box_more_evenly() -> None:
    def gap(sobol_seed: int | None) -> float:
        points = Collocation(Poisson(), (1024, 4, 0), torch.Generator().manual_seed(0), sobol_seed).draw()["interior"]
        counts, _ = np.histogramdd(points.numpy(), bins=(8, 8), range=[(-1, 1), (-1, 1)])
        return float(np.abs(counts - 16).max())

    assert gap(1) <= 3 < gap(None)


@pytest.mark.parametrize("equation", [Poisson(), Burgers(), Kovasznay(), TaylorGreen()], ids=lambda e: type(e).__name__)
def test_sobol_points_cover_every_face(equation: Equation) -> None:
    faces, each = equation.faces, 32
    drawn = Collocation(equation, (100, each * len(faces), 8), torch.Generator().manual_seed(0), 7)
    lower, upper = torch.tensor(equation.domain).T
    for _ in range(3):
        boundary = (drawn.draw()["boundary"] - lower) / (upper - lower)
        for coordinate, value in faces:
            end = (value - lower[coordinate]) / (upper[coordinate] - lower[coordinate])
            face = boundary[boundary[:, coordinate] == end]
            assert len(face) == each
            for other in set(range(len(lower))) - {coordinate}:
                halves = [int((face[:, other] < 0.5).sum()), int((face[:, other] >= 0.5).sum())]
                assert min(halves) >= 14, (coordinate, value, other, halves)


def test_adaptive_points_lie_where_the_residual_is() -> None:
    def residual(points: Tensor) -> Tensor:
        return (points[:, 0] > 0.5).float() * 100

    points = Collocation(Burgers(), (500, 4, 4), torch.Generator().manual_seed(0)).draw_where(residual)["interior"]
    # A quarter of the candidates has |r| / mean + 1 = 5, the others 1; a quarter of all is drawn, without replacement.
    share = (points[:, 0] > 0.5).float().mean().item()
    assert 0.5 < share < 5 / 8


def test_periodic_points_face_each_other_and_initial_points_are_first() -> None:
    batch = Collocation(KdV(), (10, 8, 6), torch.Generator().manual_seed(0)).draw()
    assert {name: len(points) for name, points in batch.items()} == {
        "interior": 10, "initial": 6, "lower": 4, "upper": 4,
    }  # fmt: skip
    assert torch.equal(batch["lower"][:, 1], batch["upper"][:, 1])
    assert set(batch["lower"][:, 0].tolist()) == {-1.0} and set(batch["upper"][:, 0].tolist()) == {1.0}
    assert set(batch["initial"][:, 1].tolist()) == {0.0}


def test_relative_l2_is_the_norm_of_the_error_over_that_of_the_solution() -> None:
    generator = np.random.default_rng(0)
    found, reference = generator.normal(size=(2, 30, 1))
    expected = np.linalg.norm(found - reference) / np.linalg.norm(reference)
    assert relative_l2(torch.tensor(found), torch.tensor(reference)) == pytest.approx(expected, rel=1e-12)
    assert relative_l2(torch.zeros(5), torch.ones(5)) == 1.0


def test_a_data_file_is_scored_against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    task = BurgersPINN(reference="field.npz")
    with pytest.raises(MissingData, match=r"reference: found no .*field\.npz"):
        task.data_digest()
    (tmp_path / "pinn").mkdir()
    x, t = np.linspace(-1, 1, 20), np.linspace(0, 1, 10)
    np.savez(tmp_path / "pinn" / "field.npz", x=x, t=t, usol=np.outer(x, t))
    built = task.workload(build_recipe(task, {}), Streams(0), CPU)
    assert isinstance(built, PhysicsInformed)
    points = torch.cat([built._scored[split] for split in ("val", "test")])
    assert len(points) == 200 and len({tuple(point) for point in points.tolist()}) == 200

    class Product(torch.nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return points.prod(dim=1, keepdim=True)

    for split in ("val", "test"):
        with torch.no_grad():
            assert built.evaluate(Product(), split)["relative_l2"] < 1e-6
    assert len(task.data_digest()) == 16


def test_a_plan_depends_on_its_reference_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", "~/data")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "data" / "pinn" / "field.npz"
    file.parent.mkdir(parents=True)
    np.savez(file, x=[-1, 1], t=[0, 1], usol=np.zeros((2, 2)))
    with watching() as seen:
        before = BurgersPINN(reference="field.npz").data_digest()
    assert unchanged(seen)
    np.savez(file, x=[-1, 1], t=[0, 1], usol=np.ones((2, 2)))
    assert not unchanged(seen) and BurgersPINN(reference="field.npz").data_digest() != before


@pytest.mark.parametrize("task", [PoissonPINN(), NavierStokesPINN(flow="taylor_green")], ids=["one", "three outputs"])
def test_pictures_are_svg_and_repeat(task: PhysicsTask) -> None:
    built = task.workload(build_recipe(task, {}), Streams(0), CPU)
    assert isinstance(built, PhysicsInformed)
    pictures = built.pictures(built.model)
    assert list(pictures) == ["field.svg"] and pictures == built.pictures(built.model)
    text = pictures["field.svg"]
    assert text.startswith("<?xml") and all(title in text for title in ("predicted", "reference", "|error|"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BurgersPINN, KdVPINN])  # the second reads its initial field from numpy
def test_compiled_predictions_agree_with_plain_ones(kind: type[PhysicsTask]) -> None:
    """The objective, its gradient by the weights, and that by the predictions, which StableGrad is made from."""

    (value, slopes), (other, others) = (first_gradient(kind(compiled=compiled), "cpu") for compiled in (True, False))
    torch.testing.assert_close(value, other, rtol=1e-5, atol=0)
    for one, two in zip(slopes, others, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)
