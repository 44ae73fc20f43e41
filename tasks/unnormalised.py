"""Networks without normalisation: any model, its BatchNorm and LayerNorm removed and nothing else changed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Normalisation = Literal["library", "none", "none_with_biases", "skip_init", "fixup"]
"""`library` leaves a model as it is; what the others do is said at `unnormalise`."""
REMOVED = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class BranchScale(nn.Module):
    """A residual branch times a trained number; 0 at the start makes its block the identity (SkipInit)."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def unnormalise(model: nn.Module, normalisation: Normalisation) -> nn.Module:
    """Removes every normalisation from a model, in place, and returns it. Nothing is drawn at random.

    - `none`: only that. Convolutions that had no bias of their own lose the one that their normalisation gave.
    - `none_with_biases`: the convolutions and linear layers before a removed normalisation get a bias, zero at the start.
    - `skip_init`: with biases, and a trained factor, 0 at the start, where the normalisation that ends a residual branch
      stood. Source: De & Smith 2020, arXiv 2002.10444.
    - `fixup`: with biases and a factor of 1 at that place; of L residual branches with m weights each, the last weight
      starts at 0, the others are multiplied with L^(-1/(2m-2)), and so does the classifier start at 0. Source: Zhang,
      Dauphin & Ma 2019, arXiv 1901.09321 (its scalar biases are the layers' own here).

    Args:
        model: of torchvision, or any with residual blocks whose branch ends in a normalisation; a branch is what
            `branches` finds.

    Raises:
        ValueError: for a model without normalisation, or `skip_init` and `fixup` on one without residual branches.

    >>> plain = unnormalise(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), "none_with_biases")
    >>> [type(layer).__name__ for layer in plain], plain[0].bias.shape
    (['Conv2d', 'Identity'], torch.Size([4]))
    """
    if normalisation == "library":
        return model
    norms = [name for name, module in model.named_modules() if isinstance(module, REMOVED)]
    if not norms:
        raise ValueError(f"normalisation: found {normalisation!r} for a model that has none to remove")
    ends = branches(model) if normalisation in ("skip_init", "fixup") else {}
    if normalisation in ("skip_init", "fixup") and not ends:
        raise ValueError(f"normalisation: found {normalisation!r}, needs residual branches that end in a normalisation")
    if normalisation == "fixup":
        _fixup(model, ends)
    if normalisation != "none":
        _restore_biases(model)
    for name in norms:
        start = 0.0 if normalisation == "skip_init" else 1.0
        _replace(model, name, BranchScale(start) if name in ends else nn.Identity())
    return model


def branches(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The residual branches of a model: by the name of the normalisation that ends each, its weight layers.

    Torchvision's residual blocks, and blocks with `use_res_connect` (MobileNet, EfficientNet) where it is true.
    """
    from torchvision.models.efficientnet import FusedMBConv, MBConv
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.models.resnet import BasicBlock, Bottleneck

    ends: dict[str, list[nn.Module]] = {}
    for name, block in model.named_modules():
        if isinstance(block, BasicBlock | Bottleneck):
            inside = [(part, layer) for part, layer in block.named_modules() if not part.startswith("downsample")]
        elif isinstance(block, MBConv | FusedMBConv | InvertedResidual) and block.use_res_connect:
            inside = [(part, layer) for part, layer in block.named_modules() if "fc" not in part.split(".")[-1]]
        else:
            continue
        last = [part for part, layer in inside if isinstance(layer, REMOVED)][-1]
        ends[f"{name}.{last}"] = [layer for _, layer in inside if isinstance(layer, nn.Conv2d | nn.Linear)]
    return ends


def _restore_biases(model: nn.Module) -> None:
    """Gives a bias of zeros to each weight layer whose output a normalisation reads (the one defined next)."""
    previous: nn.Module | None = None
    for module in model.modules():
        if isinstance(module, REMOVED) and isinstance(previous, nn.Conv2d | nn.Linear) and previous.bias is None:
            previous.bias = nn.Parameter(previous.weight.new_zeros(previous.weight.shape[0]))
        if not list(module.children()):
            previous = module


@torch.no_grad()
def _fixup(model: nn.Module, ends: dict[str, list[nn.Module]]) -> None:
    for layers in ends.values():
        *first, last = (layer.get_parameter("weight") for layer in layers)
        last.zero_()
        for weight in first:
            weight.mul_(len(ends) ** (-1 / (2 * len(layers) - 2)))
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    classifier.weight.zero_()
    if classifier.bias is not None:
        classifier.bias.zero_()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)
