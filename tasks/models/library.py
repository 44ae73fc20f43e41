"""Models of torchvision and transformers, by name, one activation module per place where it is called.

The libraries are imported when a model is built: together they take as long to import as a small trial takes to run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.data import place
from tasks.models.call_sites import Squash, split_call_sites
from tasks.unnormalised import Normalisation, unnormalise

SMALL_STEMS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "mobilenet_v2",
    "efficientnet_b0",
    "efficientnet_v2_s",
)
"""Models that have a small stem."""
VISION = ("alexnet", *SMALL_STEMS, "vit_b_16", "swin_t")
SMALLEST = {
    "alexnet": 63,
    "densenet121": 29,
    "densenet_bc_100": 4,
    "vit_b_16": 16,
    "swin_t": 4,
    "deit_tiny": 4,
    "cnn": 4,
}
"""The smallest images that a model takes with its own stem; others take all."""


def vision(
    name: str,
    size: int,
    classes: int,
    *,
    small_stem: bool = False,
    dropout: float | None = None,
    stochastic_depth: float | None = None,
    pretrained: bool = False,
    normalisation: Normalisation = "library",
) -> nn.Module:
    """A model of torchvision for images of three channels, (samples, 3, size, size) to (samples, classes).

    Args:
        small_stem: the first convolution keeps the resolution and nothing is pooled behind it, as is usual for images of 32
            pixels. Residual, dense and mobile networks only.
        dropout: instead of the library's own.
        stochastic_depth: likewise, for EfficientNets and Swin Transformers.
        pretrained: starts from the library's default weights, read from `weights` in the data folder; a classifier for
            another number of classes starts anew.
        normalisation: what is done about it, as in `tasks.unnormalised`.

    Raises:
        MissingData: if the weights are not in the data folder.
    """
    from torchvision import models

    more: dict[str, Any] = {"image_size": size} if name == "vit_b_16" else {}
    more |= {"dropout": dropout} if dropout is not None else {}
    more |= {"stochastic_depth_prob": stochastic_depth} if stochastic_depth is not None else {}
    if name == "densenet121" and dropout is not None:
        more["drop_rate"] = more.pop("dropout")
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **more)
    if pretrained:
        load_weights(model, weights_file(name))
    model = unnormalise(_small_stem(model, name) if small_stem else model, normalisation)
    return finish(model, torch.zeros(2, 3, size, size))


def resnet_tiny(
    channels: int, classes: int, width: int = 16, depth: int = 1, normalisation: Normalisation = "library"
) -> nn.Module:
    """A residual network for small images: three stages of `depth` blocks, of `width`, 2 and 4 times `width` channels.

    With `depth` 3 and `width` 16 it is the ResNet-20 of He et al. 2016 (arXiv 1512.03385, §4.2), but for the shortcuts, which
    are convolutions here as in the larger networks.
    """
    from torchvision.models.resnet import BasicBlock

    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(channels, width, 3, padding=1, bias=False))
    model.add_module("bn1", nn.BatchNorm2d(width))
    model.add_module("act1", nn.ReLU())
    before = width
    for stage in range(3):
        after = width * 2**stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            shortcut = None
            if before != after:
                shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            model.add_module(f"block{stage + 1}_{block + 1}", BasicBlock(before, after, stride, shortcut))
            before = after
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("linear", nn.Linear(before, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return finish(unnormalise(model, normalisation), torch.zeros(2, channels, 32, 32))


def densenet_bc_100(size: int, classes: int) -> nn.Module:
    """DenseNet-BC with 100 layers and growth rate 12, for images of about 32 pixels (arXiv 1608.06993, table 2)."""
    from torchvision.models import DenseNet

    model = DenseNet(12, (16, 16, 16), num_init_features=24, num_classes=classes)
    return finish(_small_stem(model, "densenet_bc_100"), torch.zeros(2, 3, size, size))


def finish(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """One activation module per call site; what weighs channels is no gate; every gradient has the same bits each time."""
    for module in model.modules():
        if isinstance(getattr(module, "scale_activation", None), nn.Sigmoid):
            module.scale_activation = Squash()
        pool = getattr(module, "avgpool", None)
        if type(pool) is nn.AdaptiveAvgPool2d and pool.output_size not in (1, (1, 1)):  # to one place it is a mean
            module.avgpool = RepeatablePool(pool.output_size)
    return split_call_sites(model, *inputs)


class RepeatablePool(nn.AdaptiveAvgPool2d):
    """The library's pooling. On a GPU as products of matrices: of its own gradient CUDA has no version with fixed bits."""

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_cuda:
            return super().forward(input)
        size = self.output_size
        height, width = size if isinstance(size, tuple) else (size, size)
        return pooled(input, height or input.shape[-2], width or input.shape[-1])


def pooled(images: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling of (..., rows, columns) to (..., height, width) by two products, up to rounding.

    >>> bool((pooled(torch.ones(2, 3, 5, 7), 2, 3) - 1).abs().max() < 1e-6)
    True
    """
    return _averages(height, images.shape[-2], images) @ images @ _averages(width, images.shape[-1], images).T


def _averages(parts: int, size: int, like: Tensor) -> Tensor:
    """The matrix (parts, size) that takes means over the parts that adaptive pooling makes of an axis."""
    weights = torch.zeros(parts, size, dtype=torch.float64)
    for part in range(parts):
        first, last = part * size // parts, -(-(part + 1) * size // parts)
        weights[part, first:last] = 1 / (last - first)
    return weights.to(like)


def _small_stem(model: Any, name: str) -> nn.Module:
    if name.startswith("resnet"):
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    elif name.startswith("densenet"):
        model.features.conv0 = nn.Conv2d(3, model.features.conv0.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.features.conv0.weight)
        model.features.pool0 = nn.Identity()
    else:
        model.features[0][0].stride = (1, 1)
    return model


def weights_file(name: str) -> Path:
    """Where the library's default weights of a model lie in the data folder."""
    from torchvision import models

    file = Path("weights") / models.get_model_weights(name).DEFAULT.url.rsplit("/", 1)[1]
    return place.require(f"weights/{name}", [place.folder() / file], f"python -m tasks.data weights/{name}")[0]


def load_weights(model: nn.Module, file: Path) -> None:
    """Loads weights; tensors of another shape, those of another classifier, keep their initial values.

    Raises:
        ValueError: if more than a classifier does not fit.
    """
    saved: dict[str, Tensor] = torch.load(file, weights_only=True, map_location="cpu")
    own = model.state_dict()
    fits = {name: value for name, value in saved.items() if name in own and own[name].shape == value.shape}
    unfit = sorted(own.keys() - fits.keys())
    if len(unfit) > 2:
        raise ValueError(f"{file.name}: {len(unfit)} tensors do not fit, such as {', '.join(unfit[:3])}")
    model.load_state_dict(own | fits)


class Logits(nn.Module):
    """A model of transformers that takes one tensor and returns its logits, as every model here does."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self._call(self.model, inputs).logits
        return logits


def _tokens(model: nn.Module, tokens: Tensor) -> Any:
    return model(input_ids=tokens, use_cache=False)


def _pixels(model: nn.Module, images: Tensor) -> Any:
    return model(pixel_values=images)


class SourceTarget:
    """Splits (samples, source + target) into what an encoder and a decoder take. Token 0 of the source is padding."""

    def __init__(self, source: int) -> None:
        self.source = source

    def __call__(self, model: nn.Module, tokens: Tensor) -> Any:
        source, target = tokens[:, : self.source], tokens[:, self.source :]
        return model(input_ids=source, attention_mask=(source != 0).long(), decoder_input_ids=target, use_cache=False)


def _of_transformers(model: nn.Module, call: Callable[[nn.Module, Tensor], Any], example: Tensor) -> nn.Module:
    for module in model.modules():
        if type(module).__module__ == "transformers.activations":
            module.is_gate = True  # type: ignore[assignment]
    return split_call_sites(Logits(model, call), example)


def deit(size: int, classes: int, *, width: int = 192, depth: int = 12, heads: int = 3, patch: int = 16) -> nn.Module:
    """DeiT from its configuration, the tiny one unless told otherwise (arXiv 2012.12877)."""
    from transformers import DeiTConfig, DeiTForImageClassification

    config = DeiTConfig(  # type: ignore[call-arg]
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width,
        image_size=size, patch_size=patch, num_labels=classes,
    )  # fmt: skip
    return _of_transformers(DeiTForImageClassification(config), _pixels, torch.zeros(1, 3, size, size))


def gpt2(vocabulary: int, context: int, *, width: int = 768, depth: int = 12, heads: int = 12) -> nn.Module:
    """GPT-2 from its configuration, without dropout: 12 layers are the 124M model; 6 layers of 384 are nanoGPT's small one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary, n_positions=context, n_embd=width, n_layer=depth, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return _of_transformers(GPT2LMHeadModel(config), _tokens, torch.zeros(1, 8, dtype=torch.int64))


def llama60m(vocabulary: int, context: int, *, width: int = 512, depth: int = 8, heads: int = 8) -> nn.Module:
    """The 60M Llama of GaLore's experiments (arXiv 2403.03507): 8 layers of 512, feed-forward 1376."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=context, hidden_size=width, num_hidden_layers=depth,
        num_attention_heads=heads, intermediate_size=1376 * width // 512,
    )  # fmt: skip
    return _of_transformers(LlamaForCausalLM(config), _tokens, torch.zeros(1, 8, dtype=torch.int64))


def t5_small(vocabulary: int, source: int) -> nn.Module:
    """T5-small from its configuration (arXiv 1910.10683), without dropout: source and target tokens side by side."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(  # type: ignore[call-arg]
        vocab_size=vocabulary, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    return _of_transformers(model, SourceTarget(source), torch.ones(1, source + 4, dtype=torch.int64))
