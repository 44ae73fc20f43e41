"""Data sets: honest splits, digests, augmentation, batches made ahead, files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import write_images
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, _apply_op

from harness import Batch
from harness.inputs import unchanged, watching
from harness.streams import Streams
from tasks import data
from tasks.data import EpochOrder, Split, Splits, Standardiser, augment, files, place
from tasks.data.pipeline import Pipeline, mapped_ahead


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def write_idx(file: Path, array: np.ndarray) -> None:
    """MNIST's format: two zeros, the type, the number of dimensions, the dimensions, the bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.write_bytes(header + array.tobytes())


def write_fashion(folder: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for part, size in (("train", 50), ("t10k", 20)):
        raw = folder / "FashionMNIST" / "raw"
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (size, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", rng.integers(0, 10, size, dtype=np.uint8))


def rows(split: Split) -> set[bytes]:
    return {sample.numpy().tobytes() for sample in split.inputs}


def test_every_sample_is_in_one_part(folder: Path) -> None:
    write_fashion(folder)
    splits = data.load("fashion_mnist", Streams(0))
    parts = [rows(splits[name]) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [45, 5, 20]
    assert len(set.union(*parts)) == 70
    again, other = data.load("fashion_mnist", Streams(0)), data.load("fashion_mnist", Streams({"init": 0, "split": 1}))
    assert torch.equal(again.train.inputs, splits.train.inputs)
    assert rows(other.val) != parts[1]
    assert rows(other.test) == parts[2]


def test_selection_on_test_is_what_it_says(folder: Path) -> None:
    write_fashion(folder)
    splits = data.load("fashion_mnist", Streams(0), selection="test")
    assert rows(splits.val) == rows(splits.test)
    assert len(splits.train) == 50


def test_a_subset_is_part_of_the_whole(folder: Path) -> None:
    write_fashion(folder)
    whole, part = data.load("fashion_mnist", Streams(3)), data.load("fashion_mnist", Streams(3), train=7, val=2)
    assert torch.equal(part.train.inputs, whole.train.inputs[:7])
    assert (len(part.train), len(part.val), len(part.test)) == (7, 2, 20)


def test_the_cache_holds_what_torchvision_reads(folder: Path) -> None:
    from torchvision.datasets import FashionMNIST

    write_fashion(folder)
    first, second = data.known("fashion_mnist").raw(), data.known("fashion_mnist").raw()
    read = FashionMNIST(str(folder), train=True)
    for raw in (first, second):
        assert torch.equal(raw.train.inputs[:, 0], read.data)
        assert torch.equal(raw.train.labels, read.targets)


def test_data_replaced_in_place_is_noticed(folder: Path) -> None:
    write_fashion(folder)
    before = data.digest("fashion_mnist")
    assert data.digest("fashion_mnist") == before
    images = data.load("fashion_mnist", Streams(0)).test.inputs
    write_fashion(folder, seed=1)
    assert data.digest("fashion_mnist") != before
    assert not torch.equal(data.load("fashion_mnist", Streams(0)).test.inputs, images)


def test_a_digest_is_that_of_the_contents(folder: Path, tmp_path: Path) -> None:
    """Where a file lies and when it was written does not count."""
    copies = [tmp_path / name / "file.txt" for name in ("a", "b")]
    for copy in copies:
        copy.parent.mkdir()
        copy.write_text("the same")
    assert place.digest(copies[:1]) == place.digest(copies[1:])


def test_what_is_missing_says_how_to_get_it(folder: Path) -> None:
    with pytest.raises(
        data.MissingData, match=r"cifar100: found no cifar-100-python/train in .*python -m tasks.data cifar100"
    ):
        data.digest("cifar100")
    with pytest.raises(
        data.MissingData, match=r"unpack CINIC-10.tar.gz so that cinic10 has the folders train, valid, test"
    ):
        data.load("cinic10", Streams(0))
    with pytest.raises(ValueError, match=r"found 'cifar', allowed: .*cifar10"):
        data.known("cifar")


def test_training_samples_are_known_before_reading() -> None:
    for name in ("digits", "breast_cancer"):
        for selection in ("validation", "test"):
            splits = data.load(name, Streams(1), selection=selection)
            assert len(splits.train) == data.known(name).training_samples(selection)


def test_standardised_by_the_training_part_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 4, 4), dtype=torch.uint8, generator=generator)
    parts = Splits(*(Split(part, torch.zeros(10)) for part in images.split(10)))
    pixels = parts.train.inputs.double()
    expected = (parts.test.inputs.double() - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std(
        (0, 2, 3), keepdim=True, correction=0
    )
    torch.testing.assert_close(parts.standardised().test.inputs.double(), expected, atol=1e-6, rtol=0)
    table = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    assert torch.equal(Standardiser.of(table)(table)[:, 1], torch.zeros(2))


def test_crop_and_flip_move_whole_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.arange(1, 2 * 3 * 6 * 6 + 1).reshape(2, 3, 6, 6)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for cropped, source in zip(augment.crop(images, 2, generator), padded, strict=True):
        windows = [source[:, y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
        assert any(torch.equal(cropped, window) for window in windows)
    flipped = augment.flip(images.repeat(20, 1, 1, 1), generator)
    mirrored = sum(torch.equal(image, images[i % 2].flip(-1)) for i, image in enumerate(flipped))
    assert 8 <= mirrored <= 32
    assert all(
        torch.equal(image, images[i % 2]) or torch.equal(image, images[i % 2].flip(-1))
        for i, image in enumerate(flipped)
    )


def test_erasing_takes_a_rectangle_of_a_share_of_the_images() -> None:
    erased = augment.erase(torch.ones(400, 1, 16, 16), 0.2, torch.Generator().manual_seed(0))
    shares = [float((image == 0).float().mean()) for image in erased]
    assert 50 <= sum(share > 0 for share in shares) <= 110
    assert all(0.01 < share < 0.4 for share in shares if share)
    for image in erased[[i for i, share in enumerate(shares) if share]]:
        lines, columns = (image[0] == 0).any(1).sum(), (image[0] == 0).any(0).sum()
        assert lines * columns == (image == 0).sum()


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_operations_are_torchvision_s(magnitude: int) -> None:
    """Equal to the bit but for blends, where a last bit of the factor may round a pixel by one."""
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    space = RandAugment()._augmentation_space(31, (32, 32))
    for (function, low, high, signed), (name, (table, theirs)) in zip(
        augment._operations(32, 32), space.items(), strict=True
    ):
        assert signed == theirs
        value = float(table[magnitude]) if table.ndim else 0.0
        for sign in (1, -1) if signed else (1,):
            ours = function(images, sign * (low + (high - low) * magnitude / 30))
            expected = [_apply_op(image, name, sign * value, InterpolationMode.NEAREST, None) for image in images]
            difference = (ours.int() - torch.stack(expected).int()).abs()
            assert difference.max() <= (1 if name in ("Color", "Sharpness", "Contrast", "Brightness") else 0), name


def test_rand_augment_is_a_function_of_its_generator() -> None:
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    one, two, other = (augment.rand_augment(images, 2, 9, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(images, before)


def pipeline(ahead: int) -> Pipeline:
    order = EpochOrder(10, 4, torch.Generator().manual_seed(0))
    return Pipeline(order, lambda indices, number: {"indices": indices, "number": torch.tensor(number)}, ahead)


def taken(source: Pipeline, count: int) -> list[Batch]:
    return [source.next() for _ in range(count)]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def test_batches_made_ahead_are_the_same_and_resume_exactly() -> None:
    plain, ahead = pipeline(0), pipeline(5)
    assert same(taken(plain, 7), taken(ahead, 7))
    state = ahead.state_dict()
    rest = taken(plain, 6)
    assert same(taken(ahead, 6), rest)
    for depth in (0, 3):
        resumed = pipeline(depth)
        taken(resumed, 2)
        resumed.load_state_dict(state)
        assert same(taken(resumed, 6), rest)


def test_a_fresh_pipeline_s_state_is_its_start() -> None:
    source = pipeline(4)
    state = source.state_dict()
    first = taken(source, 3)
    source = pipeline(4)
    source.load_state_dict(state)
    assert same(taken(source, 3), first)


def test_mapped_ahead_keeps_the_order() -> None:
    assert list(mapped_ahead(lambda x: x * x, range(50), 4)) == [x * x for x in range(50)]


def test_folders_of_images(folder: Path) -> None:
    write_images(folder / "imagenet100" / "train", 3, 10, (40, 30))
    write_images(folder / "imagenet100" / "val", 3, 2, (30, 40))
    known = data.known("imagenet100")
    raw = known.raw()
    assert known.training_samples("validation") == 27
    splits = data.divide(known, raw, Streams(0))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (27, 3, 6)
    for number, label in zip(splits.test.inputs.tolist(), splits.test.labels.tolist(), strict=True):
        assert f"val/class{label}/" in raw.files[number]
    before = data.digest("imagenet100")
    (folder / "imagenet100" / "train" / "class0" / "0.png").write_bytes(b"shorter")
    assert data.digest("imagenet100") != before


def test_a_plan_depends_on_the_folders_of_its_images(folder: Path) -> None:
    for part in ("train", "val"):
        write_images(folder / "imagenet100" / part, 2, 2, (8, 8))
    with watching() as seen:
        before = data.digest("imagenet100")
    assert unchanged(seen)
    (folder / "imagenet100" / "train" / "class1" / "more.png").write_bytes(b"an image")
    assert not unchanged(seen) and data.digest("imagenet100") != before


def test_small_images_are_decoded_as_they_are(folder: Path) -> None:
    for part in ("train", "valid", "test"):
        write_images(folder / "cinic10" / part, 2, 3, (32, 32))
    splits = data.load("cinic10", Streams(0))
    assert {name: len(splits[name]) for name in ("train", "val", "test")} == {"train": 6, "val": 6, "test": 6}
    file = folder / "cinic10" / "valid" / "class1" / "2.png"
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert any(torch.equal(image, expected) for image in splits.val.inputs)


def test_decoding_takes_the_centre_or_a_random_part(tmp_path: Path) -> None:
    pixels = np.zeros((256, 256, 3), dtype=np.uint8)
    pixels[16:240, 16:240] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    centre = files.decode(str(tmp_path / "image.png"), 224)
    assert centre.shape == (3, 224, 224) and int(centre.min()) == 255
    parts: list[Tensor] = [
        files.decode(str(tmp_path / "image.png"), 224, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(parts[0], parts[1]) and not torch.equal(parts[0], parts[2])


def test_the_real_cifar10() -> None:
    try:
        splits = data.load("cifar10", Streams(0))
    except data.MissingData as error:
        pytest.skip(str(error))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (45_000, 5_000, 10_000)
    assert torch.equal(splits.test.labels.bincount(), torch.full((10,), 1000))
    scale = Standardiser.of(torch.cat([splits.train.inputs, splits.val.inputs]))
    torch.testing.assert_close(scale.mean.flatten() / 255, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        scale.deviation.flatten() / 255, torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-4, rtol=0
    )
