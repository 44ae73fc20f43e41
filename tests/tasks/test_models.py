"""Every model has the library's outputs to the bit, and one activation module per call site."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from harness.activations import gates
from tasks.models import GPTTiny, ViTTiny, dress, image_model, library
from tasks.models.call_sites import split_call_sites
from tasks.models.initial import sinusoidal

CALL_SITES = {
    "resnet18": 17,
    "mobilenet_v2": 35,
    "efficientnet_b0": 49,
}
SLOWER = {
    "swin_t": 12,
    "densenet121": 121,
    "alexnet": 7,
    "resnet34": 33,
    "resnet50": 49,
    "efficientnet_v2_s": 102,
    "vit_b_16": 12,
}


def calls(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """How often each gate is called in a forward pass."""
    counted = dict.fromkeys(gates(model), 0)

    def count(name: str) -> None:
        gates(model)[name].register_forward_hook(lambda *_: counted.__setitem__(name, counted[name] + 1))

    for name in counted:
        count(name)
    with torch.no_grad():
        model(inputs)
    return counted


def same_as_library(name: str, sites: int) -> None:
    size = 64 if name in library.SMALLEST or name == "swin_t" else 32
    torch.manual_seed(0)
    ours = image_model(name, (3, size, size), 10)
    torch.manual_seed(0)
    more = {"image_size": size} if name == "vit_b_16" else {}
    theirs = torchvision.models.get_model(name, num_classes=10, **more)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    images = torch.randn(2, 3, size, size)
    for mode in (False, True):
        outputs = []
        for model in (ours.train(mode), theirs.train(mode)):
            torch.manual_seed(1)
            outputs.append(model(images))
        assert torch.equal(*outputs)
    outputs[0].square().sum().backward()
    outputs[1].square().sum().backward()
    gradients = dict(theirs.named_parameters())
    assert all(torch.equal(p.grad, gradients[n].grad) for n, p in ours.named_parameters())
    assert calls(copy.deepcopy(ours), images) == dict.fromkeys(gates(ours), 1)
    assert len(gates(ours)) == sites


@pytest.mark.parametrize(("shape", "size"), [((1, 1), (6, 6)), ((6, 6), (6, 6)), ((13, 9), (6, 4))])
def test_pooling_by_products_is_pooling(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """What a GPU computes in its place, values and gradients."""
    images = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    outcomes = []
    for outcome in (functional.adaptive_avg_pool2d(images, size), library.pooled(images, *size)):
        (gradient,) = torch.autograd.grad(outcome.square().sum(), images)
        outcomes.append((outcome, gradient))
    torch.testing.assert_close(*outcomes, rtol=1e-12, atol=1e-14)
    model = image_model("alexnet", (3, 63, 63), 10)
    assert isinstance(model.avgpool, library.RepeatablePool)
    assert type(image_model("resnet18", (3, 32, 32), 10).avgpool) is nn.AdaptiveAvgPool2d


@pytest.mark.parametrize("name", CALL_SITES)
def test_torchvision(name: str) -> None:
    same_as_library(name, CALL_SITES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOWER)
def test_torchvision_larger(name: str) -> None:
    same_as_library(name, SLOWER[name])


def test_transformers() -> None:
    from transformers import DeiTConfig, GPT2Config, LlamaConfig

    torch.manual_seed(0)
    tokens = torch.randint(1, 50, (2, 16))
    images = torch.randn(2, 3, 32, 32)
    small = {"width": 32, "depth": 2, "heads": 2}
    models = {
        "gpt2": (library.gpt2(50, 16, **small), tokens, 2),
        "llama": (library.llama60m(50, 16, **small), tokens, 2),
        "deit": (library.deit(32, 10, patch=8, **small), images, 2),
    }
    for ours, inputs, sites in models.values():
        wrapped = ours.model
        named = {"pixel_values": inputs} if wrapped.config.model_type == "deit" else {"input_ids": inputs}
        theirs = type(wrapped)(wrapped.config)
        theirs.load_state_dict(wrapped.state_dict())
        with torch.no_grad():
            assert torch.equal(ours.eval()(inputs), theirs.eval()(**named).logits)
        assert calls(ours, inputs) == dict.fromkeys(gates(ours), 1)
        assert len(gates(ours)) == sites
    assert {DeiTConfig.model_type, GPT2Config.model_type, LlamaConfig.model_type} == {"deit", "gpt2", "llama"}


def test_parameter_counts_of_the_papers() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert round(count(image_model("densenet_bc_100", (3, 32, 32), 100)) / 1e6, 1) == 0.8  # arXiv 1608.06993, table 2
    assert count(image_model("resnet18", (3, 32, 32), 10, stem="small")) == 11_173_962
    # timm's DeiT-Ti, and the distillation token with its position, which transformers' model has in any case
    assert count(library.deit(224, 1000)) == 5_717_416 + 2 * 192


def test_small_stem_keeps_the_resolution() -> None:
    model = image_model("resnet18", (3, 32, 32), 10, stem="small")
    seen: list[Tensor] = []
    model.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(torch.zeros(2, 3, 32, 32))
    assert seen[0].shape == (2, 64, 32, 32)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.act = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x)).relu()
        return functional.gelu(self.act(x - 1), approximate="tanh") + torch.sigmoid(x)


class Branching(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x) if x.sum() > 0 else -functional.relu(x)


def test_functions_methods_and_modules_become_sites() -> None:
    torch.manual_seed(0)
    model, inputs = Functional(), torch.randn(4, 3)
    before = copy.deepcopy(model)(inputs)
    split = split_call_sites(model, inputs)
    assert torch.equal(split(inputs), before)
    kinds = sorted(type(gate).__name__ for gate in gates(split).values())
    assert kinds == ["GELU", "LeakyReLU", "LeakyReLU", "ReLU"]
    assert set(calls(split, inputs).values()) == {1}


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be told apart"):
        split_call_sites(Branching(), torch.ones(1, 3))


def test_another_activation_everywhere() -> None:
    model = dress(image_model("efficientnet_b0", (3, 32, 32), 10), "gelu", "native")
    assert {type(gate) for gate in gates(model).values()} == {nn.GELU}


def test_sinusoidal_has_the_published_form() -> None:
    weight = sinusoidal(torch.empty(5, 2, 3, 1, dtype=torch.float64)).reshape(5, 6)
    i, j = 3, 4
    angle = torch.tensor((i + 1) * (2 * torch.pi * j / 6 + 2 * torch.pi / 5), dtype=torch.float64)
    ratio = weight / weight[0, 0] * torch.sin(torch.tensor(2 * torch.pi / 5, dtype=torch.float64))
    torch.testing.assert_close(ratio[i, j], torch.sin(angle))
    torch.testing.assert_close(weight.var(correction=0), torch.tensor(2 / 6, dtype=torch.float64))


def test_initial_weights_reach_every_layer() -> None:
    model = dress(image_model("cnn", (1, 8, 8), 10), "native", "sinusoidal")
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert all(torch.equal(layer.weight, sinusoidal(torch.empty_like(layer.weight))) for layer in layers)
    assert all(not layer.bias.any() for layer in layers)


def test_small_transformers_are_causal_or_not() -> None:
    torch.manual_seed(0)
    gpt = GPTTiny(11, 8, 16, 2, 2, "relu")
    tokens = torch.randint(0, 11, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    torch.testing.assert_close(gpt(tokens)[:, :5], gpt(changed)[:, :5])
    assert not torch.allclose(gpt(tokens)[:, 5:], gpt(changed)[:, 5:])
    assert ViTTiny((3, 32, 32), 7, 16, 1, 2, "gelu")(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "options", "said"),
    [
        ("alexnet", (3, 32, 32), {}, "resize: found images of 32 pixels"),
        ("vit_b_16", (3, 32, 32), {"stem": "small"}, "stem: found 'small'"),
        ("mlp", (3, 8, 8), {"pretrained": True}, "pretrained: mlp has no such option"),
        ("cnn", (30,), {}, "allowed: mlp"),
        ("resnet18", (1, 28, 28), {}, "three channels"),
        ("resnet18", (3, 32, 32), {"dropout": 0.2}, "dropout: resnet18 has no such option"),
        ("mobilenet_v2", (3, 32, 32), {"dropout": 1.5}, "dropout: found 1.5, must lie in"),
        ("vit_tiny", (1, 8, 8), {"width": 30}, "width: found 30, allowed for vit_tiny: multiples of 4"),
        ("cnn", (1, 3, 3), {}, "resize: found images of 3 pixels, allowed for cnn: 4 or more"),
        ("deit_tiny", (3, 2, 2), {}, "resize: found images of 2 pixels, allowed for deit_tiny: 4 or more"),
        ("vit_b_16", (3, 20, 20), {}, "resize: found images of 20 pixels, allowed for vit_b_16: multiples of 16"),
        ("densenet121", (3, 7, 7), {"stem": "small"}, "resize: found images of 7 pixels, allowed for densenet121: 8"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, shape: tuple[int, ...], options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        image_model(name, shape, 10, **options)


@pytest.mark.parametrize(
    ("name", "stem", "size"),
    [*((name, "native", size) for name, size in library.SMALLEST.items()), ("densenet121", "small", 8)],
)
def test_the_smallest_images_are_the_smallest(name: str, stem: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "split_call_sites", lambda model, *inputs: model)  # it compares, which meta cannot

    def run(pixels: int) -> torch.Size:
        with torch.device("meta"):
            model = image_model(name, (3, pixels, pixels), 10, stem=stem)
            return model(torch.zeros(2, 3, pixels, pixels)).shape

    assert run(size) == (2, 10)
    monkeypatch.setattr("tasks.models.check_image_size", lambda *args: None)
    with pytest.raises((RuntimeError, ValueError, AssertionError)):
        run(size - 1)


def test_pretrained_weights_come_from_the_data_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"python -m tasks\.data weights/resnet18"):
        image_model("resnet18", (3, 32, 32), 10, pretrained=True)
    published = torchvision.models.get_model("resnet18", num_classes=1000)
    file = torchvision.models.get_model_weights("resnet18").DEFAULT.url.rsplit("/", 1)[1]
    (tmp_path / "weights").mkdir()
    torch.save(published.state_dict(), tmp_path / "weights" / file)
    model = image_model("resnet18", (3, 32, 32), 10, pretrained=True)
    assert torch.equal(model.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    assert model.fc.weight.shape == (10, 512)
