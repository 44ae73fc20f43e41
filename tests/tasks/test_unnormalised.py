"""Models without normalisation: what is removed, what stays, and how the residual branches start."""

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from harness.activations import gates
from tasks.models import image_model
from tasks.unnormalised import REMOVED, BranchScale, branches, unnormalise


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = models.get_model(name, weights=None, num_classes=10)
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b0", "efficientnet_v2_s"])
@pytest.mark.parametrize("normalisation", ["none", "none_with_biases", "skip_init"])
def test_normalisation_is_gone_and_weights_are_what_they_were(name: str, normalisation: str) -> None:
    library, model = build(name), unnormalise(build(name), normalisation)  # type: ignore[arg-type]
    assert not any(isinstance(module, REMOVED) for module in model.modules())
    found = weights(model)
    assert all(torch.equal(found[name], weight) for name, weight in weights(library).items())
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all((conv.bias is not None) for conv in convolutions) == (normalisation != "none")
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_model_without_normalisation_is_its_plain_formula() -> None:
    model = unnormalise(build("resnet18"), "none").eval()
    block, x = model.layer1[0], torch.randn(2, 64, 8, 8)
    by_hand = torch.relu(x + torch.conv2d(torch.relu(torch.conv2d(x, block.conv1.weight, padding=1)),
                                          block.conv2.weight, padding=1))  # fmt: skip
    torch.testing.assert_close(block(x), by_hand)


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 8), ("resnet50", 16), ("efficientnet_b0", 9), ("efficientnet_v2_s", 35)]
)
def test_every_residual_branch_starts_at_zero(name: str, count: int) -> None:
    assert len(branches(build(name))) == count
    skip = unnormalise(build(name), "skip_init")
    scales = [module for module in skip.modules() if isinstance(module, BranchScale)]
    assert len(scales) == count and all(scale.scale.item() == 0.0 for scale in scales)


def test_skip_init_makes_blocks_the_identity_and_lets_them_learn() -> None:
    model = unnormalise(build("resnet18"), "skip_init")
    block, x = model.layer1[0], torch.rand(2, 64, 8, 8)
    torch.testing.assert_close(block(x), x)
    block(x).square().sum().backward()
    assert float(block.bn2.scale.grad) != 0.0


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 2), ("resnet50", 3)])
def test_fixup_scales_by_its_rule(name: str, layers: int) -> None:
    library, model = build(name), unnormalise(build(name), "fixup")
    count = 8 if layers == 2 else 16
    factor = count ** (-1 / (2 * layers - 2))
    before, after = library.layer2[1], model.layer2[1]
    torch.testing.assert_close(after.conv1.weight, factor * before.conv1.weight)
    assert not getattr(after, f"conv{layers}").weight.any() and not model.fc.weight.any() and not model.fc.bias.any()
    assert torch.equal(library.layer2[0].downsample[0].weight, model.layer2[0].downsample[0].weight)


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ValueError, match="normalisation: found 'none' for a model that has none to remove"):
        unnormalise(nn.Linear(2, 2), "none")
    with pytest.raises(ValueError, match="needs residual branches"):
        unnormalise(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), "fixup")
    model = build("resnet18")
    assert unnormalise(model, "library") is model and isinstance(model.bn1, nn.BatchNorm2d)


def test_the_tiny_residual_network_is_he_s() -> None:
    """ResNet-20 with convolutions as shortcuts has 272,474 parameters."""
    model = image_model("resnet_tiny", (3, 32, 32), 10, depth=3)
    assert sum(p.numel() for p in model.parameters()) == 272_474
    assert len(gates(model)) == 1 + 9 * 2


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet18"])
@pytest.mark.parametrize("normalisation", ["none", "none_with_biases", "skip_init", "fixup"])
def test_models_by_name_leave_it_out(name: str, normalisation: str) -> None:
    model = image_model(name, (3, 32, 32), 10, normalisation=normalisation)  # type: ignore[arg-type]
    assert not any(isinstance(module, REMOVED) for module in model.modules())
    outputs = model(torch.randn(2, 3, 32, 32))
    assert outputs.shape == (2, 10)
    assert bool((outputs == 0).all()) == (normalisation == "fixup"), "Fixup's classifier starts at 0"


def test_a_model_that_has_none_refuses() -> None:
    with pytest.raises(ValueError, match="normalisation: cnn has no such option"):
        image_model("cnn", (3, 32, 32), 10, normalisation="none")
