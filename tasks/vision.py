"""Classification of images and tables: `DATA/MODEL` with a recipe of its own, and `DATA/any` for every other pair.

Where a paper is named the recipe is the paper's; crops and mirrored images are added where the papers are silent. All other
recipes are customary values and were not tuned.
"""

from __future__ import annotations

from typing import Any

from harness import register_task
from tasks import data
from tasks.classification import (
    AnyTask,
    ImageTask,
    LibraryTask,
    ResidualTask,
    ResizedTask,
    SmallStemTask,
    SmallTask,
    TableTask,
)

BALANCED_ADAM = "arXiv 2601.21739"
OUI = "arXiv 2504.17160"
OUI_DECAY = "arXiv 2605.10161"
REFRESH = "arXiv 2605.10119"

COSINE: dict[str, Any] = {"schedule": "cosine"}
SHIFTED: dict[str, Any] = {"crop": 4, "flip": True}
"""The customary augmentation of CIFAR."""
ADAMW: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2, "batch": 128, **COSINE}
SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.9, **COSINE}
BALANCED: dict[str, Any] = {"beta1": 0.95, "beta2": 0.95, "autocast": True, **COSINE}
"""What all runs of arXiv 2605.10161 share."""
VIT: dict[str, Any] = {"lr": 5e-4, "final_rate": 0.01, "weight_decay": 0.1, "batch": 128, "epochs": 50, "warmup": 1000, "clip": 1.0,
       "label_smoothing": 0.1, **COSINE}  # fmt: skip


def add(
    base: type[ImageTask], name: str, title: str, source: str = "", batch_norm: bool = False, **training: Any
) -> None:
    """Registers the task `DATA/MODEL` with its recipe, as far as that differs from the defaults."""
    data_set, model = name.split("/")
    offers = ImageTask.offers | ({"batch_norm"} if batch_norm else set())
    contents = {"data_set": data_set, "fixed_model": model, "training": training, "source": source, "offers": offers}
    label = "".join(part.title() for part in (*data_set.split("_"), *model.split("_")))
    register_task(name)(type(label, (base,), {"__doc__": f"{title}.", "__module__": __name__, **contents}))


# fmt: off
add(SmallTask, "breast_cancer/mlp", "A multi-layer perceptron on scikit-learn's breast cancer table",
    **ADAMW | {"batch": 32, "epochs": 60})
add(SmallTask, "mnist/mlp", "A multi-layer perceptron on MNIST", epochs=10, **ADAMW)
add(SmallTask, "mnist/cnn", "A small convolutional network on MNIST", epochs=5, **ADAMW)
add(SmallTask, "fashion_mnist/mlp", "A multi-layer perceptron on Fashion-MNIST", epochs=15, **ADAMW)
add(SmallTask, "fashion_mnist/cnn", "A small convolutional network on Fashion-MNIST", epochs=10, **ADAMW)
add(SmallTask, "cifar10/mlp", "A multi-layer perceptron on CIFAR-10", epochs=20, **ADAMW)
add(SmallTask, "cifar10/cnn", "A small convolutional network on CIFAR-10", epochs=20, **ADAMW | SHIFTED)
add(ResidualTask, "cifar10/resnet_tiny", "A small residual network on CIFAR-10", batch_norm=True,
    epochs=20, **SGD | SHIFTED | {"lr": 0.1, "weight_decay": 5e-4, "batch": 128})
add(SmallTask, "cifar10/vit_tiny", "A small Vision Transformer on CIFAR-10", epochs=30, warmup_epochs=2, **ADAMW | SHIFTED)

add(SmallStemTask, "cifar10/resnet18", "ResNet-18 on CIFAR-10", batch_norm=True,
    epochs=60, batch=128, lr=0.1, weight_decay=5e-4, **SGD | SHIFTED)
add(SmallStemTask, "cifar10/mobilenet_v2", "MobileNetV2 on CIFAR-10", OUI_DECAY, batch_norm=True,
    epochs=100, batch=256, optimizer="adam", lr=5e-4, final_rate=0.01, weight_decay=1e-4, warmup=500, clip=1.0,
    label_smoothing=0.1, rand_augment=2, erasing=0.2, **BALANCED | SHIFTED)

add(SmallStemTask, "cifar100/resnet18", "ResNet-18 on CIFAR-100; the paper initialises it with init: sinusoidal",
    BALANCED_ADAM, batch_norm=True, epochs=100, batch=64, optimizer="adam", lr=0.02, weight_decay=1e-3,
    warmup_epochs=10, **COSINE | SHIFTED)
add(SmallStemTask, "cifar100/resnet50", "ResNet-50 on CIFAR-100", batch_norm=True,
    epochs=100, batch=128, lr=0.1, weight_decay=5e-4, **SGD | SHIFTED)
add(SmallStemTask, "cifar100/densenet121", "DenseNet-121 on CIFAR-100", OUI_DECAY, batch_norm=True,
    epochs=100, batch=256, lr=5e-4, final_rate=0.01, weight_decay=5e-2, warmup=500, **BALANCED | SHIFTED)
add(ImageTask, "cifar100/densenet_bc_100", "DenseNet-BC with 100 layers on CIFAR-100", OUI, batch_norm=True,
    epochs=200, batch=64, lr=0.01, weight_decay=1e-3, **SGD | SHIFTED)
add(ResizedTask, "cifar100/vit_b_16", "ViT-B/16 on CIFAR-100 at 224 pixels", REFRESH, flip=True, **VIT)

add(ResizedTask, "cinic10/alexnet", "AlexNet on CINIC-10 at 224 pixels",
    epochs=30, batch=64, lr=0.01, flip=True, **SGD)
add(SmallStemTask, "cinic10/resnet18", "ResNet-18 on CINIC-10", batch_norm=True,
    epochs=60, batch=128, lr=0.1, weight_decay=5e-4, **SGD | SHIFTED)

add(LibraryTask, "tiny_imagenet/efficientnet_v2_s",
    "EfficientNetV2-S on Tiny ImageNet; the paper sets dropout: 0.6", BALANCED_ADAM, batch_norm=True,
    epochs=60, batch=64, lr=1e-3, weight_decay=3e-5, label_smoothing=0.1, flip=True, **COSINE)
add(LibraryTask, "tiny_imagenet/efficientnet_b0", "EfficientNet-B0 on Tiny ImageNet", OUI, batch_norm=True,
    epochs=150, batch=64, lr=0.01, weight_decay=1e-4, warmup_epochs=15, flip=True, **SGD)
add(ResizedTask, "tiny_imagenet/vit_b_16", "ViT-B/16 on Tiny ImageNet at 224 pixels", REFRESH, flip=True, **VIT)

add(LibraryTask, "caltech256/swin_t", "Swin-T on Caltech-256", REFRESH, flip=True, **VIT | {"epochs": 60})
add(LibraryTask, "food101/resnet50", "ResNet-50 on Food-101", OUI_DECAY, batch_norm=True,
    epochs=50, batch=128, lr=3e-4, final_rate=0.1, weight_decay=1e-2, flip=True, **BALANCED)
add(LibraryTask, "stanford_cars/efficientnet_b0", "EfficientNet-B0 on Stanford Cars", OUI_DECAY, batch_norm=True,
    epochs=100, batch=64, optimizer="adam", lr=8e-4, final_rate=0.0125, weight_decay=1e-5, clip=1.0,
    label_smoothing=0.05, flip=True, **BALANCED)
add(LibraryTask, "imagenet/resnet34", "ResNet-34 on ImageNet-1k", OUI, batch_norm=True,
    epochs=90, batch=256, lr=0.1, weight_decay=1e-4, warmup_epochs=5, flip=True, **SGD)
add(LibraryTask, "imagenet100/resnet50", "ResNet-50 on 100 classes of ImageNet", REFRESH, batch_norm=True,
    epochs=80, batch=128, lr=3e-4, final_rate=0.1, weight_decay=1e-2, flip=True, **BALANCED)
add(LibraryTask, "imagenet/deit_tiny", "DeiT-Ti on ImageNet-1k", "arXiv 2012.12877",
    epochs=300, batch=1024, lr=1e-3, weight_decay=0.05, warmup_epochs=5, label_smoothing=0.1, rand_augment=2,
    erasing=0.25, flip=True, **COSINE)
# fmt: on

for known in data.DATA_SETS.values():
    colour: dict[str, Any] = {"flip": True} if len(known.shape) == 3 and known.shape[0] == 3 else {}
    base = AnyTask if len(known.shape) == 3 else TableTask
    add(base, f"{known.name}/any", f"Any model on the data set {known.name}, by the option `model`",
        epochs=30, **ADAMW | colour)  # fmt: skip
