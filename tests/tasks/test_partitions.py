"""Partitions, hard clients, server optimizers and natural clients."""

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.streams import Streams
from harness.training.trial import build_recipe
from tasks import natural_clients, partitions
from tasks.data.place import MissingData
from tasks.federated import FederatedDigits, FederatedShakespeare, FederatedWriters
from tasks.federation import FederatedClassification, FederatedRecipe
from tasks.partition_picture import partition_svg
from tasks.partitions import Partition
from tasks.server_optimizers import ServerOptimizer

CPU = torch.device("cpu")
LABELS = torch.arange(1000) % 10


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def workload(seed: Any = 0, recipe: dict[str, Any] | None = None, **options: Any) -> FederatedClassification:
    task = FederatedDigits(**options)
    return task.workload(build_recipe(task, recipe or {}), Streams(seed), CPU)


def covers(parts: list[Tensor], samples: int = 1000) -> bool:
    return sorted(torch.cat(parts).tolist()) == list(range(samples))


def test_iid_parts_are_even_and_random() -> None:
    parts = partitions.iid(1000, 7, generator())
    assert covers(parts) and {len(part) for part in parts} == {142, 143}
    counts = torch.stack([LABELS[part].bincount(minlength=10) for part in parts])
    assert counts.min() > 0 and counts.float().std(dim=0).max() > 0


@pytest.mark.parametrize(("clients", "own"), [(10, 2), (20, 1), (7, 3), (5, 2)])
def test_shards_hold_their_number_of_classes(clients: int, own: int) -> None:
    labels = torch.cat([torch.full((30 + 10 * c,), c) for c in range(10)])
    parts = partitions.shards(labels, clients, own, generator(1))
    assert covers(parts, len(labels)) and len(parts) == clients
    assert max(len(labels[part].unique()) for part in parts) <= own


def test_shards_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(
        ValueError, match="classes_per_client: found 1 for 5 clients, allowed: at least 2, since there are 10"
    ):
        partitions.shards(LABELS, 5, 1, generator())
    with pytest.raises(ValueError, match="found 5 shards of a class with 2 samples"):
        partitions.shards(torch.tensor([0, 0, 1]), 4, 2, generator())


def test_quantity_skew_is_in_the_sizes_alone() -> None:
    parts = partitions.quantity(1000, 5, 0.5, 20, generator(2))
    sizes = sorted(len(part) for part in parts)
    assert covers(parts) and sizes[0] >= 20 and sizes[-1] > 2 * sizes[0]
    largest = max(parts, key=len)
    shares = LABELS[largest].bincount(minlength=10) / len(largest)
    assert shares.max() < 0.2


def test_natural_clients_are_whole_groups() -> None:
    groups = torch.tensor([5] * 10 + [7] * 3 + [9] * 20 + [11] * 15)
    parts = partitions.natural(groups, 2, 10, generator())
    assert all(len(groups[part].unique()) == 1 and len(part) in (10, 20, 15) for part in parts)
    with pytest.raises(
        ValueError, match="clients: found 4, allowed: at most the 3 natural clients with at least 10 samples"
    ):
        partitions.natural(groups, 4, 10, generator())


def test_rare_clients_keep_a_few_of_their_own() -> None:
    whole, thin = workload(alpha=5.0), workload(alpha=5.0, rare_clients=0.25, rare_size=12)
    assert len(thin.partition.rare) == 5
    for client, (one, other) in enumerate(zip(whole.parts, thin.parts, strict=True)):
        if client in thin.partition.rare:
            assert len(other) == min(12, len(one)) and set(other.tolist()) <= set(one.tolist())
        else:
            assert torch.equal(one, other)
    assert thin.sizes == [len(part) for part in thin.parts]


def test_noisy_clients_have_a_share_of_wrong_labels() -> None:
    clean, noisy = workload(), workload(noisy_clients=0.2, label_noise=0.4)
    assert len(noisy.partition.noisy) == 4
    for client in range(20):
        one, other = (w.client_data(client) for w in (clean, noisy))
        assert torch.equal(one["inputs"], other["inputs"])
        wrong = int((one["labels"] != other["labels"]).sum())
        assert wrong == (round(0.4 * noisy.sizes[client]) if client in noisy.partition.noisy else 0)
    assert torch.equal(clean.splits.val.labels, noisy.splits.val.labels)


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    flipped = partitions.flip_labels(torch.zeros(9000, dtype=torch.int64), torch.arange(9000), 1.0, 10, generator())
    counts = flipped.bincount(minlength=10)
    assert counts[0] == 0 and counts[1:].min() > 850


@pytest.mark.parametrize(
    "options",
    [
        {"partition": "iid"},
        {"partition": "shards"},
        {"partition": "quantity"},
        {"partition": "dirichlet", "noisy_clients": 0.2, "rare_clients": 0.2, "rare_size": 20},
    ],
)
def test_partitions_follow_their_own_stream(options: dict[str, Any]) -> None:
    seeds: list[dict[str, int]] = [
        {"init": 0, "partition": 1, "split": 0},
        {"init": 5, "partition": 1, "split": 0},
        {"init": 0, "partition": 2, "split": 0},
    ]
    built = [workload(seed, **options) for seed in seeds]
    found = [(torch.cat(w.parts).tolist(), w.partition.noisy, w.splits.train.labels.tolist()) for w in built]
    assert found[0] == found[1] != found[2]


def test_what_the_data_set_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"partition: found natural, allowed: .*; the data set has no natural clients"):
        workload(partition="natural")
    with pytest.raises(ValueError, match="partition: found shards, allowed: natural, iid, quantity"):
        FederatedShakespeare(partition="shards")
    with pytest.raises(ValueError, match=r"noisy_clients: found 0\.5, allowed: 0"):
        FederatedShakespeare(noisy_clients=0.5)
    with pytest.raises(ValueError, match="heads: found 3, must divide width"):
        FederatedShakespeare(heads=3)
    with pytest.raises(ValueError, match="partition: found natural"):
        FederatedDigits(partition="natural")
    for options, name in (({"noisy_clients": 1.5}, "noisy_clients"), ({"only_classes": (3, 12)}, "only_classes")):
        with pytest.raises(ValueError, match=f"{name}: found"):
            FederatedDigits(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 2000, "partition": "iid"}, "clients: found 2000, allowed: at most 1078"),
        ({"clients": 200, "train": 100, "partition": "shards"}, "clients: found 200, allowed: at most 100"),
        ({"clients": 200, "min_size": 10}, "min_size: found 10 for 200 clients, allowed: at most 5"),
    ],
)
def test_more_clients_than_samples_are_refused_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    task = FederatedDigits(**options)
    with pytest.raises(ValueError, match=message):
        build_recipe(task, {})


def test_training_may_keep_to_some_classes() -> None:
    built = workload(only_classes=(0, 1, 2), partition="iid")
    for name in ("train", "val", "test"):
        assert built.splits[name].labels.unique().tolist() == [0, 1, 2]
    assert built.model(built.probe_inputs).shape[1] == 10


def test_the_picture_shows_every_client() -> None:
    built = workload(noisy_clients=0.1, rare_clients=0.1)
    (picture,) = built.pictures(built.model).values()
    root = ElementTree.fromstring(picture)
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    counts = torch.stack([built.splits.train.labels[part].bincount(minlength=10) for part in built.parts])
    assert len(bars) == int((counts > 0).sum())
    longest = max(built.sizes)
    assert sum(float(bar.attrib["width"]) for bar in bars) == pytest.approx(640 * sum(built.sizes) / longest, abs=10)
    assert picture.count("noisy") > 2 and "client 19: " in picture
    assert partition_svg(Partition([torch.arange(4)])).count("<rect") == 1


# --- participation


def test_clients_that_drop_out_are_missing_and_one_stays() -> None:
    whole = workload(recipe={"clients_per_round": 8})
    some = workload(recipe={"clients_per_round": 8, "client_dropout": 0.4})
    rounds = [(whole.participants(r), some.participants(r)) for r in range(400)]
    assert all(set(there) <= set(asked) and there for asked, there in rounds)
    assert np.mean([len(there) for _, there in rounds]) == pytest.approx(0.6 * 8, abs=0.2)
    none = workload(recipe={"client_dropout": 0.999})
    assert all(len(none.participants(r)) == 1 for r in range(20))


def test_stragglers_take_a_part_of_their_steps() -> None:
    whole, late = workload(), workload(recipe={"stragglers": 0.5})
    steps = [(whole.enter(k, r), late.enter(k, r)) for r in range(20) for k in range(20)]
    assert all(1 <= part <= full for full, part in steps)
    shortened = np.mean([part < full for full, part in steps])
    assert 0.35 < shortened < 0.5
    late.enter(3, 2), whole.enter(3, 2)
    assert torch.equal(late.next_batch()["inputs"], whole.next_batch()["inputs"])


# --- server optimizers


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi"])
def test_server_optimizers_by_hand(name: Any) -> None:
    optimizer = ServerOptimizer(name, lr=0.1, beta1=0.9, beta2=0.99, tau=0.01)
    m, v = 0.0, 0.01**2
    for delta in (0.5, -0.2, 0.1):
        change = optimizer({"w": torch.tensor(delta, dtype=torch.float64), "mean": torch.tensor(7.0)}, {"w"})
        if name == "momentum":
            m = 0.9 * m + delta
            expected = 0.1 * m
        else:
            m = 0.9 * m + 0.1 * delta
            v = 0.99 * v + 0.01 * delta**2 if name == "adam" else v - 0.01 * delta**2 * np.sign(v - delta**2)
            expected = 0.1 * m / (np.sqrt(v) + 0.01)
        assert change["w"].item() == pytest.approx(expected) and change["mean"].item() == 7.0


def test_server_adam_is_torchs_without_its_corrections() -> None:
    """Against torch.optim.Adam once the corrections for the start have faded, with a negative change as the gradient."""
    optimizer = ServerOptimizer("adam", lr=0.1, beta1=0.5, beta2=0.6, tau=1e-8)
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    reference = torch.optim.Adam([weight], lr=0.1, betas=(0.5, 0.6), eps=1e-8)
    draws = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for delta in draws:
        before, weight.grad = weight.detach().clone(), -delta
        reference.step()
        change = optimizer({"w": delta}, {"w"})["w"]
    torch.testing.assert_close(change, weight.detach() - before, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"client_dropout": 1.0}, r"client_dropout: found 1.0, must lie in \[0, 1\)"),
        ({"stragglers": 1.5}, r"stragglers: found 1.5, must lie in \[0, 1\]"),
        ({"server_lr": 0.0}, "server_lr: found 0.0, must be positive"),
        ({"server_beta2": 1.0}, r"server_beta2: found 1.0, must lie in \[0, 1\)"),
    ],
)
def test_bad_recipes_say_what_is_allowed(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FederatedRecipe(**recipe)
    assert FederatedRecipe(server_optimizer="yogi").resolve().server_lr == 0.01


# --- summaries


def test_the_curve_in_numbers() -> None:
    found = workload().summarize([(2, 0.2), (4, 0.6), (8, 0.6)])
    assert found == {
        "val/accuracy_area": pytest.approx((0.4 * 2 + 0.6 * 4) / 6),
        "val/accuracy_final": 0.6,
        "rounds_to_best": 4,
    }
    assert workload().summarize([]) == {} and workload().summarize([(3, 0.5)])["val/accuracy_area"] == 0.5


# --- natural clients, on small files of the same form


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    (tmp_path / "federated").mkdir()
    draws = generator()
    writer = np.repeat(np.arange(6) * 3, 40)
    np.savez(
        tmp_path / "federated" / "mnist_100_writers.npz",
        images=draws.integers(0, 256, (240, 28, 28), dtype=np.uint8),
        labels=draws.integers(0, 10, 240).astype(np.uint8),
        writer=writer,
    )
    speeches = {f"S{k}": ["to be or not to be " * 4] * (2 + k) for k in range(5)}
    (tmp_path / "federated" / "tinyshakespeare_by_speaker.json").write_text(json.dumps({"user_data": speeches}))
    return tmp_path


def test_each_writer_is_a_client(people: Path) -> None:
    task = FederatedWriters(clients=6)
    built = task.workload(build_recipe(task, {"clients_per_round": 2}), Streams(0), CPU)
    splits, writers = natural_clients.writers(Streams(0))
    assert len(built.splits.train) == sum(built.sizes) == 192 and len(built.splits.val) == len(built.splits.test) == 24
    assert all(len(writers[part].unique()) == 1 for part in built.parts)
    assert built.sizes == writers.unique(return_counts=True)[1].tolist()
    assert torch.equal(splits.train.labels, built.splits.train.labels)
    with pytest.raises(ValueError, match="clients: found 100, allowed: at most the 6 natural clients"):
        FederatedWriters().workload(FederatedRecipe(), Streams(0), CPU)


def test_each_speaker_is_a_client(people: Path) -> None:
    task = FederatedShakespeare(clients=4, context=10, min_size=5, width=8, depth=1, heads=2)
    built = task.workload(build_recipe(task, {"clients_per_round": 2}), Streams(0), CPU)
    splits, speakers = natural_clients.speakers(10)
    assert torch.equal(splits.train.inputs[:, 1:], splits.train.labels[:, :-1])
    assert all(len(speakers[part].unique()) == 1 and len(part) >= 5 for part in built.parts)
    built.enter(0, 0)
    batch = built.next_batch()
    value = built.objective(built.model, batch).value
    assert built.model(batch["inputs"]).shape == (*batch["inputs"].shape, natural_clients.vocabulary_size())
    assert float(value) == pytest.approx(np.log(natural_clients.vocabulary_size()), rel=0.1)
    assert set(built.evaluate(built.model, "val")) == {"loss", "accuracy"}


def test_missing_people_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    with pytest.raises(MissingData, match=r"found no federated/mnist_100_writers.npz .* to get it: put a file there"):
        FederatedWriters().data_digest()


def test_real_writers() -> None:
    """10,999 images of 100 writers, 58 to 129 each."""
    if not (Path(os.environ.get("HARNESS_DATA", "")) / "federated" / "mnist_100_writers.npz").is_file():
        pytest.skip("needs federated/mnist_100_writers.npz in HARNESS_DATA")
    splits, writers = natural_clients.writers(Streams(0))
    assert sum(len(splits[name]) for name in ("train", "val", "test")) == 10_999 and len(writers.unique()) == 100
