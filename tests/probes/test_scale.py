"""Adam's answer to a change of scale: closed forms against Adam itself, the published ranges, and the probe."""

import math
from pathlib import Path

import pytest
import torch
from support import run
from torch import Tensor

from harness.conformance import short_spec
from harness.identity import Part
from harness.probes.curves import ema, roughness, roughness2
from harness.probes.scale_response import (
    LiteralDecomposition,
    diagonal_selection,
    drift_response,
    drift_value,
    impulse_response,
    largest_update,
    replay,
    step_response,
)
from harness.recording.records import TrialRecords
from harness.registry import Registry
from harness.training.loop import Interrupted

PAIRS = [(0.9, 0.999), (0.9, 0.95), (0.95, 0.9), (0.9, 0.9)]
LONG = 30_000


def final(logs: Tensor, beta1: float, beta2: float) -> float:
    """Adam's update after gradients of given logarithms, the moments as sums over the whole history."""
    ages = torch.arange(len(logs) - 1, -1, -1, dtype=torch.float64)
    m = ((1 - beta1) * beta1**ages * logs.exp()).sum() / (1 - beta1 ** len(logs))
    v = ((1 - beta2) * beta2**ages * (2 * logs).exp()).sum() / (1 - beta2 ** len(logs))
    return float(m / v.sqrt())


@pytest.mark.parametrize(("beta1", "beta2"), PAIRS)
@pytest.mark.parametrize("lag", [0, 1, 45, 300])
def test_responses(beta1: float, beta2: float, lag: int) -> None:
    small = 1e-6

    def response(logs: Tensor) -> float:
        return (final(logs, beta1, beta2) - final(-logs, beta1, beta2)) / (2 * small)

    impulse = torch.zeros(LONG, dtype=torch.float64)
    impulse[-1 - lag] = small
    assert response(impulse) == pytest.approx(impulse_response(beta1, beta2, lag), abs=3e-9)
    step = torch.zeros(LONG, dtype=torch.float64)
    if lag:
        step[-lag:] = small
    assert response(step) == pytest.approx(step_response(beta1, beta2, lag), abs=3e-9)


def test_the_peak_of_the_step_response() -> None:
    responses = [step_response(0.9, 0.999, lag) for lag in range(200)]
    assert max(responses) == pytest.approx(0.947, abs=5e-4)
    assert responses.index(max(responses)) == 45


@pytest.mark.parametrize(("beta1", "beta2"), PAIRS)
def test_drifts(beta1: float, beta2: float) -> None:
    for drift in (1e-5, 1e-3):
        logs = drift * torch.arange(-LONG + 1, 1, dtype=torch.float64)
        assert final(logs, beta1, beta2) == pytest.approx(drift_value(beta1, beta2, drift), rel=1e-9)
    numerical = (drift_value(beta1, beta2, 1e-7) - drift_value(beta1, beta2, -1e-7)) / 2e-7
    assert numerical == pytest.approx(drift_response(beta1, beta2), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("beta", "curvature"), [(0.9, -90), (0.99, -9900)])
def test_balanced_drifts_are_of_second_order(beta: float, curvature: float) -> None:
    h = 1e-5 if beta == 0.9 else 1e-6
    second = (drift_value(beta, beta, h) - 2 + drift_value(beta, beta, -h)) / h**2
    assert second == pytest.approx(curvature, rel=1e-2)
    assert drift_response(beta, beta) == 0


@pytest.mark.parametrize(("beta1", "beta2"), PAIRS)
def test_a_constant_scale_changes_nothing(beta1: float, beta2: float) -> None:
    torch.manual_seed(0)
    gradients = list(torch.randn(50, 7, dtype=torch.float64))
    scaled = replay([2.0**20 * g for g in gradients], beta1, beta2)
    for ours, theirs in zip(replay(gradients, beta1, beta2), scaled, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-16, atol=5e-16)


def test_balanced_updates_are_bounded_and_their_variance_is_an_average() -> None:
    torch.manual_seed(0)
    gradients = list(torch.randn(400, 20, dtype=torch.float64))
    for beta in (0.5, 0.9, 0.99):
        assert max(float(update.abs().max()) for update in replay(gradients, beta, beta)) <= 1 + 1e-12
        m = v = deviation = torch.zeros(20, dtype=torch.float64)
        worst = 0.0
        for g in gradients:
            deviation = beta * deviation + (1 - beta) * (m - g).square()
            m, v = beta * m + (1 - beta) * g, beta * v + (1 - beta) * g * g
            worst = max(worst, float((v - m * m - beta * deviation).abs().max()))
        assert worst < 1e-14


def test_the_largest_update() -> None:
    assert largest_update(0.9, 0.999) == pytest.approx(7.270, abs=1e-3)
    assert largest_update(0.9, 0.95) == pytest.approx(1.165, abs=1e-3)
    assert largest_update(0.9, 0.9, steps=50) == pytest.approx(1, abs=1e-12)
    assert largest_update(0.9, 0.999, steps=20_000) == pytest.approx(largest_update(0.9, 0.999), rel=1e-6)
    steps, (p, q) = (
        30,
        ((1 - b) / (1 - b**30) * torch.tensor([b**k for k in range(29, -1, -1)]).double() for b in (0.9, 0.999)),
    )
    worst = list((p / q).unsqueeze(1))
    assert float(replay(worst, 0.9, 0.999)[-1]) == pytest.approx(largest_update(0.9, 0.999, steps), rel=1e-6)


@pytest.mark.parametrize(
    ("beta1", "beta2", "published"),
    [
        (0.9, 0.9, 0.00245), (0.95, 0.95, 0.00594), (0.99, 0.99, 0.02122), (0.999, 0.999, 0.02606),
        (0.9, 0.999, 0.80403), (0.9, 0.95, 0.14194), (0.9, 0.99, 0.64568), (0.99, 0.999, 0.32838),
    ],
)  # fmt: skip
def test_the_controlled_signal(beta1: float, beta2: float, published: float) -> None:
    """The paper's signal: its range of ‖R‖ over steps 50 to 550, Adam begun at step 1."""
    k = torch.arange(601, dtype=torch.float64)
    scale = 1 + 0.5 * (torch.sigmoid((k - 200) / 20) - torch.sigmoid((k - 400) / 20))
    direction = torch.stack([torch.full_like(k, 10.0), -8 + (k / 10).sin(), 9 + (k / 10).cos()], dim=1)
    gradients = scale.unsqueeze(1) * direction / direction.norm(dim=1, keepdim=True)
    norms = torch.stack(replay(list(gradients[1:]), beta1, beta2, eps=1e-8)).norm(dim=1)[49:550]
    assert float(norms.max() - norms.min()) == pytest.approx(published, abs=1e-5)


def test_roughness() -> None:
    assert roughness([1, 2, 4]) == 1.5
    assert roughness2([1, 2, 4]) == 1.0
    assert math.isnan(roughness([1.0]))
    assert ema([3.0] * 9, 200) == [3.0] * 9


def test_diagonal_selection() -> None:
    """12 of 15 rows of five have a probability of 1.01e-6, 9 of 9 rows of three one of 5.1e-5, by chance."""
    betas = (0.9, 0.968, 0.99, 0.9968, 0.999)
    table = {(b1, b2, seed): abs(b1 - b2) for b1 in betas for b2 in betas for seed in range(3)}
    for row in range(3):
        table[betas[row], betas[row], 0] = math.nan
    hits, rows, chance = diagonal_selection(table)
    assert (hits, rows) == (12, 15)
    assert chance == pytest.approx(1.01e-6, rel=5e-3)
    three = {(b1, b2, seed): float(b1 != b2) for b1 in betas[:3] for b2 in betas[:3] for seed in range(3)}
    assert diagonal_selection(three)[:2] == (9, 9)
    assert diagonal_selection(three)[2] == pytest.approx(5.1e-5, rel=5e-3)
    ties = {(b1, b2, 0): math.inf for b1 in betas[:2] for b2 in betas[:2]}
    assert diagonal_selection(ties)[0] == 0, "a row without a finite value is no success"


def test_the_decomposition_is_an_identity() -> None:
    torch.manual_seed(0)
    literal = LiteralDecomposition(0.9, 0.999, window=1, burn_in=0)
    gradients = list(torch.randn(60, 30, dtype=torch.float64).abs() + 0.1)
    for g in gradients:
        literal.update(g)
    shares = literal.shares()
    assert shares["count"] == 60 * 30
    assert shares["S"] + shares["L"] + shares["E"] == pytest.approx(100, abs=1e-10)
    logs = [g.log() for g in gradients]
    update = torch.stack(replay(gradients, 0.9, 0.999, eps=1e-8))
    first = torch.stack([_corrected(logs, step, 0.9) - _corrected(logs, step, 0.999) for step in range(60)])
    rest = update - 1 - first
    by_hand = 100 * float(first.abs().sum() / (1800 + first.abs().sum() + rest.abs().sum()))
    assert shares["L"] == pytest.approx(by_hand, rel=1e-9)
    assert shares["kappa"] >= 1
    balanced = LiteralDecomposition(0.9, 0.9, window=1, burn_in=0)
    for g in gradients:
        balanced.update(g)
    assert balanced.shares()["L"] == 0


@pytest.mark.slow
def test_the_published_decomposition() -> None:
    """sklearn's digits, a 64-32-32-10 tanh network, 1,500 full-batch steps of torch's Adam: the released row for (.9, .999)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler
    from torch import nn

    inputs, labels = load_digits(return_X_y=True)
    inputs, _, labels, _ = train_test_split(inputs, labels, test_size=0.2, random_state=0, stratify=labels)
    x, y = torch.tensor(StandardScaler().fit_transform(inputs), dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, betas=(0.9, 0.999), eps=1e-8)
    literal = LiteralDecomposition(0.9, 0.999, window=1000)
    for _ in range(1500):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        literal.update(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
        optimizer.step()
    shares = literal.shares()
    published = {"S": 41.949, "L": 44.841, "E": 13.209, "F2": 63.52, "agreement": 99.627}
    assert {name: shares[name] for name in published} == pytest.approx(published, abs=1e-2)
    assert shares["kappa"] == pytest.approx(1.663556, abs=1e-4)
    assert shares["count"] == pytest.approx(995_852, abs=200)


def _corrected(values: list[Tensor], step: int, beta: float) -> Tensor:
    weights = [(1 - beta) * beta ** (step - k) / (1 - beta ** (step + 1)) for k in range(step + 1)]
    return torch.stack([w * value for w, value in zip(weights, values, strict=False)]).sum(dim=0)


def test_signs_that_change_do_not_count() -> None:
    literal = LiteralDecomposition(0.9, 0.999, window=3, burn_in=0)
    for g in ([1.0, 1.0], [1.0, -1.0], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0]):
        literal.update(torch.tensor(g))
    assert literal.sums["count"] == 3, "the first coordinate at steps 3 and 4, the second at step 5"


def test_the_probe(tmp_path: Path, registry: Registry) -> None:
    probe = Part("gradient_scale", {"every": 1, "window": 5, "decompose": 4})
    spec = short_spec(registry, "digits/mlp", [Part("adam")], [probe], weight_decay=0.0, precision="float64")
    result = run(registry, spec, tmp_path)
    values = [r["metrics"] for r in TrialRecords(tmp_path, spec.hash).records() if "metrics" in r]
    norms = [v["probe/gradient_scale/update_norm"] for v in values if "probe/gradient_scale/update_norm" in v]
    parameters = sum(p.numel() for p in registry.build_task("digits/mlp", {}).model().parameters())  # type: ignore[attr-defined]
    # Adam's first update is a sign in every coordinate whose gradient is not 0 (dead inputs and units have none).
    assert 0.5 * math.sqrt(parameters) < norms[0] <= math.sqrt(parameters)
    assert result.metrics["probe/gradient_scale/omega1"] == pytest.approx(roughness(ema(norms, 5)), rel=1e-9)
    balanced = short_spec(registry, "digits/mlp", [Part("balanced_adam", {"beta": 0.9})], [probe])
    metrics = run(registry, balanced, tmp_path).metrics
    assert metrics["probe/gradient_scale/first_order"] == 0
    assert metrics.get("probe/gradient_scale/share/L", 0.0) == 0


def test_the_scale_of_each_layer_and_its_picture(tmp_path: Path, registry: Registry) -> None:
    """Against autograd on the bare formula: the gradient of the first step, from the same weights and points."""
    from harness.streams import Streams
    from harness.training.trial import build_recipe
    from tasks.physics import PoissonPINN

    probe = Part("layer_gradients", {"every": 1})
    spec = short_spec(registry, "poisson/pinn", [Part("adam")], [probe], precision="float64")
    run(registry, spec, tmp_path)
    records = [r["metrics"] for r in TrialRecords(tmp_path, spec.hash).records() if "metrics" in r]
    found = {name.split("/")[-1]: v for name, v in records[0].items() if name.startswith("probe/layer_gradients/")}

    task = PoissonPINN()
    torch.set_default_dtype(torch.float64)
    try:
        built = task.workload(build_recipe(task, spec.recipe), Streams(0), torch.device("cpu"))
        built.objective(built.model, built.next_batch()).value.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    linear = {name: layer for name, layer in built.model.named_modules() if isinstance(layer, torch.nn.Linear)}
    expected = {name: float(layer.weight.grad.numpy().std()) for name, layer in linear.items()}  # type: ignore[union-attr]
    expected["spread"] = max(expected.values()) / min(expected.values())
    assert found == pytest.approx(expected, rel=1e-12) and len(expected) == 5

    picture = (TrialRecords(tmp_path, spec.hash).folder / "pictures" / "layer_gradients.svg").read_text()
    assert picture.startswith("<?xml") and all(f"{name}</text>" in picture for name in linear)


def test_stable_grad_makes_layers_alike_and_resuming_keeps_the_history(tmp_path: Path, registry: Registry) -> None:
    probe = Part("layer_gradients", {"every": 1})
    spec = short_spec(registry, "poisson/pinn", [Part("stable_grad"), Part("adam")], [probe], clip=None)
    assert run(registry, spec, tmp_path).metrics["probe/layer_gradients/spread"] == pytest.approx(1, rel=1e-5)
    folder = TrialRecords(tmp_path, spec.hash).folder
    whole = (folder / "pictures" / "layer_gradients.svg").read_text()
    with pytest.raises(Interrupted):
        run(registry, spec, tmp_path / "again", halt=lambda step: step == 11)
    run(registry, spec, tmp_path / "again")
    other = TrialRecords(tmp_path / "again", spec.hash).folder / "pictures" / "layer_gradients.svg"
    assert other.read_text() == whole
