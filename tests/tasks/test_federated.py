"""The federated task: partitions against the distribution, rounds against a plain loop, and trials of it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import stats
from support import run, timeless
from synthetic import stand_in, write_images
from torch import Tensor
from torch.nn import functional

from harness.conformance import Ran, run_short, short_spec
from harness.identity import Part, TrialSpec
from harness.recording.records import Status, TrialRecords
from harness.registry import Registry
from harness.seeds import derive
from harness.streams import Streams
from harness.training.loop import Interrupted
from harness.training.trial import build_recipe
from tasks import data
from tasks.data import files
from tasks.federated import FederatedClassification, FederatedDigits, FederatedRecipe
from tasks.partitions import dirichlet

CPU = torch.device("cpu")


def workload(
    seed: int | dict[str, int] = 0, options: dict[str, Any] | None = None, **recipe: Any
) -> FederatedClassification:
    task = FederatedDigits(**(options or {}))
    return task.workload(build_recipe(task, recipe), Streams(seed), CPU)


def spec_of(options: dict[str, Any], method: str = "fed_avg", seed: int = 0, **recipe: Any) -> TrialSpec:
    resolved = asdict(build_recipe(FederatedDigits(**options), recipe))
    return TrialSpec("digits/federated", options, 1, [Part(method)], resolved, {"init": seed})


# --- the partition


@pytest.mark.parametrize("alpha", [0.1, 0.5, 100.0])
def test_a_partition_is_one(alpha: float) -> None:
    built = workload(options={"alpha": alpha})
    labels = built.splits.train.labels
    assert torch.cat(built.parts).sort().values.tolist() == list(range(len(labels)))
    assert built.sizes == [len(part) for part in built.parts] and len(built.sizes) == 20
    assert min(built.sizes) >= 10


def test_small_alpha_is_strong_skew() -> None:
    """The mean share of a client's largest class falls from near 1 to near a tenth."""
    means = []
    for alpha in (0.1, 0.5, 5.0, 100.0):
        built = workload(options={"alpha": alpha})
        counts = [built.splits.train.labels[part].bincount(minlength=10) for part in built.parts]
        means.append(float(np.mean([count.max() / count.sum() for count in counts])))
    assert means == sorted(means, reverse=True) and means[0] > 0.5 and means[-1] < 0.2


def test_a_partition_follows_its_own_stream() -> None:
    parts = [
        torch.cat(workload(seed).parts).tolist()
        for seed in (
            {"init": 0, "partition": 1, "split": 0},
            {"init": 5, "partition": 1, "split": 0},
            {"init": 0, "partition": 2, "split": 0},
        )
    ]
    assert parts[0] == parts[1] != parts[2]


def test_shares_are_dirichlet() -> None:
    """Of one large class, client k's share is marginally Beta(α, (K-1)α)."""
    clients, alpha, samples = 5, 0.7, 20_000
    generator = np.random.default_rng(0)
    draws = [dirichlet(torch.zeros(samples), clients, alpha, 0, generator) for _ in range(800)]
    shares = np.array([[len(part) / samples for part in parts] for parts in draws])
    marginal = stats.beta(alpha, (clients - 1) * alpha)
    error = marginal.std() / np.sqrt(len(shares))
    np.testing.assert_allclose(shares.mean(axis=0), 1 / clients, atol=4 * error)
    np.testing.assert_allclose(shares.var(axis=0), stats.dirichlet([alpha] * clients).var(), rtol=0.15)
    assert all(stats.kstest(column, marginal.cdf).pvalue > 1e-3 for column in shares.T)
    expected = -marginal.var() / (clients - 1)  # shares sum to one
    assert np.cov(shares.T)[np.triu_indices(clients, 1)] == pytest.approx(expected, rel=0.3)


def test_classes_are_drawn_one_by_one_and_their_samples_shuffled() -> None:
    labels = torch.arange(4000) % 2
    parts = dirichlet(labels, 2, 1.0, 0, np.random.default_rng(3))
    counts = labels[parts[0]].bincount(minlength=2)
    assert counts[0] != counts[1]
    zeros = parts[0][labels[parts[0]] == 0]
    assert zeros.tolist() != list(range(0, 2 * len(zeros), 2))


def test_what_cannot_be_met_is_refused() -> None:
    labels = torch.arange(100) % 10
    with pytest.raises(
        ValueError, match="min_size: found 30 for 4 clients, allowed: at most 25, since there are 100 samples"
    ):
        dirichlet(labels, 4, 0.5, 30, np.random.default_rng(0))
    with pytest.raises(
        ValueError, match=r"min_size: found 10, which none of 10000 draws met with alpha=0.01 .* lower min_size"
    ):
        dirichlet(labels, 10, 0.01, 10, np.random.default_rng(0))


# --- data sets


def test_every_supervised_data_set_has_a_federated_task(registry: Registry) -> None:
    for known in data.DATA_SETS.values():
        task = registry.build_task(f"{known.name}/federated", {})
        assert (task.data_set, task.class_count) == (known.name, known.classes)  # type: ignore[attr-defined]
        assert isinstance(task.recipe(), FederatedRecipe)


@pytest.mark.parametrize("name", ["mnist", "tiny_imagenet"])
def test_a_data_set_without_a_task_of_its_own(name: str, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(name, monkeypatch)
    known = data.known(name)
    task = registry.build_task(f"{name}/federated", {"clients": 3, "min_size": 4, "width": 2, "noisy_clients": 0.5})
    built = task.workload(build_recipe(task, {"clients_per_round": 3}), Streams(0), CPU)
    assert isinstance(built, FederatedClassification)
    assert torch.cat(built.parts).sort().values.tolist() == list(range(36)) and min(built.sizes) >= 4
    built.enter(1, 0)
    batch = built.next_batch()
    assert batch["inputs"].shape[1:] == known.shape
    assert built.model(batch["inputs"]).shape == (len(batch["labels"]), known.classes)


def test_images_in_files_are_decoded_once(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    for part, each in (("train", 10), ("val", 3)):
        write_images(tmp_path / "data" / "imagenet100" / part, 2, each, (40, 30))
    listed = data.known("imagenet100").raw()
    expected = torch.stack([files.decode(path, 16) for path in listed.files])
    monkeypatch.setattr(files, "decode_all", decoded_once(files.decode_all, times=2))
    for _ in range(2):
        raw = data.in_memory(data.known("imagenet100"), 16).raw()
        assert raw.test is not None
        assert torch.equal(torch.cat([raw.train.inputs, raw.test.inputs]), expected)
        assert torch.equal(raw.train.labels, listed.train.labels)
    options = {"clients": 2, "min_size": 2, "resize": 16, "width": 2, "train": 15, "partition": "iid"}
    task = registry.build_task("imagenet100/federated", options)
    built = task.workload(build_recipe(task, {"clients_per_round": 2}), Streams(0), CPU)
    assert isinstance(built, FederatedClassification)
    assert built.sizes == [8, 7] and built.splits.train.inputs.shape == (15, 3, 16, 16)
    torch.testing.assert_close(built.splits.train.inputs.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_images_in_memory_are_resized_for_models_that_need_more(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As AlexNet does on CIFAR-100, where without `resize` the plan refuses it."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    stand_in("cifar100", monkeypatch)
    with pytest.raises(ValueError, match="alexnet"):
        registry.build_task("cifar100/federated", {"model": "alexnet"})
    options = {"clients": 2, "partition": "iid", "resize": 64}
    task = registry.build_task("cifar100/federated", options | {"model": "alexnet"})
    built = task.workload(build_recipe(task, {"clients_per_round": 2}), Streams(0), CPU)
    assert isinstance(built, FederatedClassification)
    assert built.splits.train.inputs.shape[1:] == (3, 64, 64)
    small, large = (known.raw().train for known in (data.known("cifar100"), data.at_size(data.known("cifar100"), 64)))
    expected = functional.interpolate(small.inputs.float(), 64, mode="bilinear", antialias=True)
    assert (large.inputs.float() - expected).abs().max() <= 1, "rounded to bytes"
    assert torch.equal(small.labels, large.labels)


def decoded_once(decode_all: Callable[..., Tensor], times: int) -> Callable[..., Tensor]:
    """Decodes so many parts, and no further one."""
    left = iter(range(times))

    def decode(paths: Iterable[str], size: int) -> Tensor:
        assert next(left, None) is not None, "it is decoded again"
        return decode_all(paths, size)

    return decode


def test_a_table_is_spread_over_clients(registry: Registry) -> None:
    task = registry.build_task("breast_cancer/federated", {"partition": "shards", "classes_per_client": 1})
    built = task.workload(build_recipe(task, {}), Streams(0), CPU)
    assert isinstance(built, FederatedClassification)
    assert all(len(built.client_data(client)["labels"].unique()) == 1 for client in range(10))
    assert built.client_data(0)["inputs"].shape[1:] == (30,)
    with pytest.raises(ValueError, match="augment: found flip, allowed: none; images alone are augmented"):
        registry.build_task("breast_cancer/federated", {"augment": "flip"})
    with pytest.raises(ValueError, match="resize: found 0, must be positive"):
        registry.build_task("food101/federated", {"resize": 0})


# --- participants and batches


def test_participants_are_drawn_uniformly_round_by_round() -> None:
    one, other = workload(rounds=1, batch=3), workload(rounds=2000)
    other.enter(3, 7)
    other.next_batch()
    chosen = [one.participants(round) for round in range(2000)]
    assert chosen[100:110] == [other.participants(round) for round in range(100, 110)]
    assert all(len(set(clients)) == 5 and clients == sorted(clients) for clients in chosen)
    counts = np.bincount(np.concatenate(chosen), minlength=20)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_an_epoch_shows_each_sample_once() -> None:
    built = workload(batch=7, local_epochs=2)
    client = int(np.argmax(np.array(built.sizes) % 7))
    steps = built.enter(client, 0)
    batches = [built.next_batch()["inputs"] for _ in range(steps)]
    own = built.client_data(client)["inputs"]
    assert steps == 2 * math.ceil(built.sizes[client] / 7)
    for epoch in (batches[: steps // 2], batches[steps // 2 :]):
        assert sorted(torch.cat(epoch).flatten(1).tolist()) == sorted(own.flatten(1).tolist())
    assert not torch.equal(batches[0], batches[steps // 2])


def test_batch_norm_gets_no_batch_of_one_sample() -> None:
    built = workload(batch=8)
    client = int(np.argmax(np.array(built.sizes) % 8 == 1))
    assert built.sizes[client] % 8 == 1 and built.enter(client, 0) == built.sizes[client] // 8 + 1
    normed = FederatedClassification(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.BatchNorm1d(10)),
        built.splits,
        built.partition,
        cast(FederatedRecipe, build_recipe(FederatedDigits(), {"batch": 8})),
        Streams(0),
        classes=10,
    )
    steps = normed.enter(client, 0)
    batches = [len(normed.next_batch()["labels"]) for _ in range(steps)]
    assert batches == [8] * (steps - 1) + [9] and sum(batches) == built.sizes[client]
    normed.sizes = [1] * len(built.sizes)
    with pytest.raises(ValueError, match="min_size: found a client of 1 samples, must have 2"):
        normed.enter(0, 0)


def test_steps_of_a_visit() -> None:
    assert workload(local_steps=11).enter(0, 0) == 11
    built = workload(batch=8, accumulate=3)
    assert built.enter(0, 0) == math.ceil(math.ceil(built.sizes[0] / 8) / 3)


def test_a_visit_shifts_no_other() -> None:
    busy, fresh = workload(), workload()
    for client in (0, 4, 2):
        for _ in range(busy.enter(client, 0)):
            busy.next_batch()
    busy.enter(1, 5)
    fresh.enter(1, 5)
    assert torch.equal(busy.next_batch()["inputs"], fresh.next_batch()["inputs"])
    fresh.enter(1, 6)
    assert not torch.equal(busy.next_batch()["inputs"], fresh.next_batch()["inputs"])


# --- rounds


def reference_rounds(spec: TrialSpec, parts: list[Tensor], clients: list[list[int]]) -> dict[str, Tensor]:
    """FedAvg as anybody would write it: by hand, on averages of weights instead of sums of updates."""
    seed, recipe = spec.seed["init"], spec.recipe
    train = data.digits(Streams(seed), CPU).train
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "init"))
        layers = [torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)]
    server = [tensor.detach() for layer in layers for tensor in (layer.weight, layer.bias)]
    for round, chosen in enumerate(clients):
        collected = []
        for client in chosen:
            w1, b1, w2, b2 = weights = [tensor.clone().requires_grad_(True) for tensor in server]
            order = torch.randperm(
                len(parts[client]), generator=torch.Generator().manual_seed(derive(seed, f"data/{round}/{client}"))
            )
            for batch in parts[client][order].split(recipe["batch"]):
                hidden = torch.relu(train.inputs[batch].flatten(1) @ w1.T + b1)
                loss = functional.cross_entropy(hidden @ w2.T + b2, train.labels[batch])
                slopes = torch.autograd.grad(loss, weights)
                with torch.no_grad():
                    for weight, slope in zip(weights, slopes, strict=True):
                        weight -= recipe["lr"] * slope
            collected.append((len(parts[client]), [weight.detach() for weight in weights]))
        total = sum(size for size, _ in collected)
        server = [sum(size / total * own[i] for size, own in collected) for i in range(4)]  # type: ignore[misc]
    return dict(zip(("1.linear1.weight", "1.linear1.bias", "1.linear2.weight", "1.linear2.bias"), server, strict=True))


def test_rounds_equal_a_plain_loop(registry: Registry) -> None:
    spec = spec_of({}, optimizer="sgd", lr=0.1, batch=16, rounds=4, schedule="constant", evaluate_every=4)
    ran = run_short(registry, spec)
    built = ran.training.workload
    assert isinstance(built, FederatedClassification)
    expected = reference_rounds(spec, built.parts, [built.participants(round) for round in range(4)])
    assert ran.weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(ran.weights[name], weight, rtol=0, atol=1e-6)


def test_one_client_is_centralised_training(registry: Registry) -> None:
    """Full batches, so that the order of the samples does not matter; without momentum, which a visit starts anew."""
    common = {"optimizer": "sgd", "lr": 0.2, "batch": 5000, "schedule": "constant", "evaluate_every": 100}
    common |= {"precision": "float64"}
    federated = run_short(registry, spec_of({"clients": 1}, rounds=4, clients_per_round=1, local_steps=3, **common))
    task = registry.build_task("digits/mlp", {"hidden": [64]})
    recipe = asdict(build_recipe(task, common | {"steps": 12, "weight_decay": 0.0}))
    central = run_short(registry, TrialSpec("digits/mlp", {"hidden": [64]}, 1, [Part("sgd")], recipe, {"init": 0}))
    for name, weight in central.weights.items():
        torch.testing.assert_close(federated.weights[name], weight, rtol=0, atol=1e-12)


def test_resume_at_every_round_is_exact(registry: Registry, results: Path) -> None:
    spec = spec_of({}, "adamw", rounds=5, evaluate_every=2, record_every=1)
    whole = run(registry, spec, results / "whole")
    for round in range(1, 5):
        with pytest.raises(Interrupted):
            run(registry, spec, results / "parts", halt=lambda step, round=round: step == round)
    parts = run(registry, spec, results / "parts")
    assert whole.status == parts.status == Status.FINISHED
    assert timeless(whole.metrics) == timeless(parts.metrics)
    assert whole.metrics["train/rounds"] == 5 and parts.attempt == 5
    numbers = [
        [(record["step"], timeless(record["metrics"])) for record in TrialRecords(results / name, spec.hash).records()]
        for name in ("whole", "parts")
    ]
    assert numbers[0] == numbers[1]
    interrupted: Ran = run_short(registry, spec, interrupt_at=3)
    assert interrupted.same_as(run_short(registry, spec))


def test_probing_leaves_the_trajectory_alone(registry: Registry) -> None:
    plain = run_short(registry, short_spec(registry, "digits/federated", [Part("adamw")]))
    probed = run_short(registry, short_spec(registry, "digits/federated", [Part("adamw")], [Part("oui", {"every": 1})]))
    assert all(torch.equal(plain.weights[name], probed.weights[name]) for name in plain.weights)
    assert {"probe/oui/1.act1", "probe/oui/mean"} <= probed.records[-1]["metrics"].keys()


def test_the_default_trial_learns(registry: Registry, results: Path) -> None:
    result = run(registry, spec_of({}), results)
    assert result.status == Status.FINISHED and result.steps == 40
    assert result.metrics["test/accuracy"] >= 0.93


# --- recipe and options


def test_rounds_are_the_steps_of_a_recipe() -> None:
    recipe = FederatedRecipe(rounds=20, schedule="linear").resolve()
    assert (recipe.steps, recipe.length, recipe.local_epochs, recipe.local_steps) == (20, 20, 1, None)
    assert (recipe.evaluate_every, recipe.record_every, recipe.rate_factor(10)) == (2, 1, 0.5)
    assert FederatedRecipe(**asdict(recipe)).resolve() == recipe
    assert FederatedRecipe(local_steps=3).resolve().local_epochs is None


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"steps": 800}, r"steps: found 800, allowed: rounds \(40\) or nothing; a federated task counts rounds"),
        ({"steps": 10, "rounds": 20}, r"steps: found 10, allowed: rounds \(20\)"),
        ({"rounds": 0}, "rounds: found 0, must be positive"),
        ({"clients_per_round": 0}, "clients_per_round: found 0, must be positive"),
        ({"local_epochs": 0}, "local_epochs: found 0, must be positive"),
        ({"local_epochs": 2, "local_steps": 5}, "local_steps: found 5 beside local_epochs: 2, allowed: one of the two"),
        ({"clients_per_round": 21}, r"clients_per_round: found 21, allowed: at most the task's clients \(20\)"),
    ],
)
def test_bad_recipes_say_what_is_allowed(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_recipe(FederatedDigits(), recipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients: found 0, must be positive"),
        ({"alpha": 0.0}, "alpha: found 0.0, must be positive"),
        ({"width": 0}, "width: found 0, must be positive"),
        ({"depth": 0}, "depth: found 0, must be positive"),
        ({"dropout": 1.0}, "dropout: found 1.0, must lie in"),
        ({"min_size": 0}, "min_size: found 0, must be positive"),
    ],
)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FederatedDigits(**options)


def test_wrong_labels_and_only_some_classes_exclude_each_other(registry: Registry) -> None:
    options = {"only_classes": (0, 1), "noisy_clients": 0.2}
    with pytest.raises(ValueError, match=r"noisy_clients: found 0\.2 beside only_classes, allowed: 0"):
        registry.build_task("cifar10/federated", options)
