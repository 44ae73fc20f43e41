"""Classification tasks: recipes, batches, resume, and one step of every full-size model."""

import dataclasses
from pathlib import Path

import pytest
import torch
from synthetic import stand_in, take_one_step, write_images
from torch.nn.functional import cross_entropy
from torchvision.models import get_model_weights

from harness import Recipe
from harness.conformance import short_spec
from harness.registry import Registry
from harness.streams import Streams
from harness.training.trial import build_recipe, settings
from tasks import data
from tasks.images import Classification
from tasks.recipes import ImageRecipe

PAPERS = [
    "cifar10/mobilenet_v2",
    "cifar100/resnet18",
    "cifar100/densenet121",
    "cifar100/densenet_bc_100",
    "cifar100/vit_b_16",
    "cinic10/alexnet",
    "tiny_imagenet/efficientnet_v2_s",
    "caltech256/swin_t",
    "food101/resnet50",
    "stanford_cars/efficientnet_b0",
    "imagenet/resnet34",
    "imagenet/deit_tiny",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_one_step_at_full_size(name: str, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(name.split("/")[0], monkeypatch, samples=4)
    take_one_step(registry, name)


@pytest.mark.parametrize("name", ["cifar10/vit_tiny", "cifar10/cnn", "fashion_mnist/mlp"])
def test_one_step_of_the_small_ones(name: str, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(name.split("/")[0], monkeypatch)
    take_one_step(registry, name)


def test_recipes_of_the_papers(registry: Registry) -> None:
    """Numbers of OUIDecay's and of balanced Adam's tables, with a tenth of CIFAR held out for validation."""
    recipe = build_recipe(registry.build_task("cifar10/mobilenet_v2", {}), {})
    assert recipe.steps == 100 * (45_000 // 256)
    assert (recipe.lr, recipe.rate_factor(recipe.steps) * recipe.lr) == (5e-4, pytest.approx(5e-6))
    assert (recipe.beta1, recipe.beta2, recipe.label_smoothing, recipe.erasing) == (0.95, 0.95, 0.1, 0.2)
    on_test = build_recipe(registry.build_task("cifar10/mobilenet_v2", {"selection": "test"}), {})
    assert on_test.steps == 100 * (50_000 // 256)
    resnet = build_recipe(registry.build_task("cifar100/resnet18", {}), {})
    assert (resnet.warmup, resnet.steps) == (10 * 703, 100 * 703)


def test_epochs_and_steps() -> None:
    recipe = ImageRecipe(epochs=3, epoch_size=100, batch=10, accumulate=2)
    assert recipe.resolve().steps == 15
    assert dataclasses.replace(recipe, steps=10).resolve().epochs == 2
    resolved = recipe.resolve()
    assert resolved.resolve() == resolved
    assert dataclasses.replace(recipe, batch=1000).resolve().steps == 2  # a batch larger than the data: one per epoch


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epoch_size": 10}, "epochs: found 0.0, must be positive where steps is 0"),
        ({"epochs": 3}, "how long an epoch of this task is, is not known"),
        ({"steps": 5, "label_smoothing": 1.5}, r"label_smoothing: found 1.5, must lie in \[0, 1\]"),
        ({"steps": 5, "erasing": -0.1}, "erasing: found -0.1"),
        ({"steps": 5, "warmup_epochs": -1.0}, "^warmup_epochs: found -1.0, must not be negative"),
    ],
)
def test_recipes_that_make_no_sense(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImageRecipe(**values)


def test_a_table_is_not_augmented(registry: Registry) -> None:
    with pytest.raises(ValueError, match="flip: found True, allowed: images alone"):
        build_recipe(registry.build_task("breast_cancer/mlp", {}), {"flip": True})
    with pytest.raises(ValueError, match="epoch_size: found 7"):
        build_recipe(registry.build_task("breast_cancer/mlp", {}), {"epoch_size": 7})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("breast_cancer/any", {"model": "cnn"}, "model: found cnn, which takes images"),
        ("breast_cancer/any", {"resize": 16}, "resize: found 16, allowed: none for a table"),
        ("digits/any", {"model": "resnet18", "width": 8}, "width: resnet18 has no such option"),
        ("digits/any", {"model": "vit_tiny", "width": 30}, "width: found 30"),
        ("digits/any", {"model": "vit_b_16", "resize": 20}, "resize: found images of 20 pixels"),
        ("digits/any", {"model": "resnet18", "dropout": 0.2}, "dropout: resnet18 has no such option"),
        ("digits/federated", {"model": "cnn"}, "depth: cnn has no such option"),
        ("digits/federated", {"model": "resnet18", "width": None, "depth": None}, "three channels"),
    ],
)
def test_a_task_refuses_a_model_that_does_not_fit(
    name: str, options: dict[str, object], said: str, registry: Registry
) -> None:
    with pytest.raises(ValueError, match=said):
        registry.build_task(name, options)


@pytest.mark.parametrize("name", ["digits/any", "cifar10/federated"])
def test_pretrained_weights_are_part_of_the_data(
    name: str, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "digest", lambda name: name)
    task = registry.build_task(name, {"model": "resnet18", "pretrained": True})
    with pytest.raises(data.MissingData, match=r"python -m tasks\.data weights/resnet18"):
        task.data_digest()
    file = tmp_path / "weights" / get_model_weights("resnet18").DEFAULT.url.rsplit("/", 1)[1]
    file.parent.mkdir()
    digests = []
    for content in (b"one", b"another"):
        file.write_bytes(content)
        digests.append(task.data_digest())
    assert len(set(digests)) == 2


AUGMENTED = {"steps": 30, "batch": 8, "crop": 4, "flip": True, "erasing": 0.5, "rand_augment": 1}


def workload(registry: Registry, name: str, recipe: dict[str, object], **options: object) -> Classification:
    task = registry.build_task(name, dict(options))
    built = task.workload(build_recipe(task, recipe), Streams(0), torch.device("cpu"))
    assert isinstance(built, Classification)
    return built


@pytest.mark.parametrize("rand_augment", [0, 1])
def test_augmented_batches_resume_exactly(
    rand_augment: int, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("cifar10", monkeypatch)
    recipe = AUGMENTED | {"rand_augment": rand_augment}
    first, second = (workload(registry, "cifar10/cnn", recipe) for _ in range(2))
    for _ in range(7):
        first.next_batch()
    second.load_state_dict(first.state_dict())
    for _ in range(7):
        one, two = first.next_batch(), second.next_batch()
        assert torch.equal(one["inputs"], two["inputs"]) and torch.equal(one["labels"], two["labels"])
    assert not torch.equal(one["inputs"], first.next_batch()["inputs"])


def test_augmentation_leaves_evaluation_alone(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("cifar10", monkeypatch)
    plain, augmented = (workload(registry, "cifar10/cnn", recipe) for recipe in ({"steps": 30}, AUGMENTED))
    for _ in range(3):
        augmented.next_batch()
    with torch.no_grad():
        assert plain.evaluate(plain.model, "val") == augmented.evaluate(plain.model, "val")


def test_smoothing_and_autocast_change_the_objective_as_torch_does(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("cifar10", monkeypatch)
    batch = workload(registry, "cifar10/cnn", {"steps": 30}).next_batch()
    values = {}
    for name, recipe in (("smooth", {"label_smoothing": 0.1}), ("bf16", {"autocast": True})):
        built = workload(registry, "cifar10/cnn", {"steps": 30} | recipe)
        values[name] = built.objective(built.model, batch)
        logits = built.model(batch["inputs"])
    log = logits.log_softmax(dim=1)
    expected = -(0.9 * log.gather(1, batch["labels"][:, None]).squeeze(1) + 0.1 * log.mean(dim=1)).mean()
    torch.testing.assert_close(values["smooth"].value, expected)
    assert values["bf16"].predictions["logits"].dtype == torch.bfloat16
    torch.testing.assert_close(values["bf16"].predictions["logits"].float(), logits, atol=0.03, rtol=0.03)


def test_float64_is_float64_in_the_loss(registry: Registry) -> None:
    with settings(short_spec(registry, "digits/any", [], precision="float64")), torch.no_grad():
        built = workload(registry, "digits/any", {"steps": 1}, model="mlp")
        batch, val = built.next_batch(), built.splits.val
        loss = built.objective(built.model, batch).value
        assert loss.dtype == torch.float64
        assert loss.item() == cross_entropy(built.model(batch["inputs"]), batch["labels"]).item()
        expected = cross_entropy(built.model(built._inputs.finished(val.inputs)), val.labels).item()
        assert built.evaluate(built.model, "val")["loss"] == pytest.approx(expected, rel=1e-12)


def test_grey_images_are_widened_and_resized(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("fashion_mnist", monkeypatch)
    built = workload(registry, "fashion_mnist/any", {"steps": 1}, model="resnet18", stem="small", resize=32)
    assert built.next_batch()["inputs"].shape[1:] == (3, 32, 32)
    assert built.probe_inputs.shape[1:] == (3, 32, 32)


def test_files_are_trained_on(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    for part, each in (("train", 10), ("val", 2)):
        write_images(tmp_path / "data" / "imagenet100" / part, 2, each, (40, 30))
    first, second = (
        workload(registry, "imagenet100/any", {"steps": 9, "batch": 4}, resize=32, model="cnn") for _ in range(2)
    )
    batches = [first.next_batch() for _ in range(6)]
    second.load_state_dict({"order": first.state_dict()["order"], "number": first.state_dict()["number"]})
    assert torch.equal(first.next_batch()["inputs"], second.next_batch()["inputs"])
    assert batches[0]["inputs"].shape == (4, 3, 32, 32)
    with torch.no_grad():
        assert first.evaluate(first.model, "test") == second.evaluate(first.model, "test")


def test_every_task_is_built_with_its_recipe(registry: Registry) -> None:
    for item in registry.items("task"):
        if item.origin.endswith(("tasks.vision",)) and not item.name.startswith("imagenet100"):
            task = registry.build_task(item.name, {})
            assert isinstance(build_recipe(task, {}), Recipe)
